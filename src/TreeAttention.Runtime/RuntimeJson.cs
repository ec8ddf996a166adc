using System.Text.Json.Serialization;

namespace TreeAttention.Runtime;

/// <summary>Serialisation without reflection of what ranks tell each other before work.</summary>
[JsonSerializable(typeof(string[]))]
internal sealed partial class RuntimeJson : JsonSerializerContext;
