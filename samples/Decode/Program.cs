// Decodes over a cache that is sharded over ranks, then attends to a prompt without one, and holds both against one rank that has all keys.
//   dotnet run                        three ranks, threads of this process
//   mpiexec -n 3 dotnet run           three processes
using System;
using System.Linq;
using TreeAttention;

var whole = new GroupOptions { Transport = TransportKind.InProcess, Threads = 1 };
float[][] expected = Decode(AttentionGroup.JoinInProcess(1, whole)[0]);

float worst = 0;
if (ProcessEnvironment.Read().IsLaunched)
{
    worst = Compare(Decode(AttentionGroup.Join(new GroupOptions { Threads = 1 })), expected);
}
else
{
    worst = AttentionGroup.RunInProcess(3, group => Compare(Decode(group), expected), new GroupOptions { Threads = 1 }).Max();
}

if (ProcessEnvironment.Read().SpeaksForAll)
{
    Console.WriteLine($"{Model.Steps} steps and one attention over {Model.Context} tokens of context: largest difference from one rank {worst:E1}");
}

return worst <= 1e-5f ? 0 : 1;

// One rank's part: a prompt in chunks, then one token at a time. Behind the steps' outputs comes that of attention without a cache.
static float[][] Decode(AttentionGroup group)
{
    using (group)
    {
        using ShardedKvCache cache = group.CreateCache(new CacheOptions
        {
            Layers = 2, KvHeads = Model.KvHeads, HeadDim = Model.Dim, ValueDim = Model.Dim, MaxLength = Model.Context + Model.Steps,
            Rotary = new RotaryOptions(Model.Dim),
        });
        for (int first = 0; first < Model.Context; first += Model.Chunk)
        {
            for (int layer = 0; layer < 2; layer++)
            {
                cache.Append(layer, Model.Keys(layer, first, Model.Chunk), Model.Values(layer, first, Model.Chunk));
            }
        }

        using DecodeStep step = group.CreateStep(cache, new DecodeOptions { QueryHeads = Model.Heads, Attention = new AttentionOptions { Causal = true } });
        float[][] outputs = new float[Model.Steps + 1][];
        float[] lse = new float[Model.Heads];
        for (int i = 0; i < Model.Steps; i++)
        {
            outputs[i] = new float[Model.Heads * Model.Dim];
            for (int layer = 0; layer < 2; layer++)
            {
                int token = Model.Context + i;
                group.Decode(step, layer, Model.Queries(layer, token), Model.Keys(layer, token, 1), Model.Values(layer, token, 1), outputs[i], lse);
            }
        }

        int begin = Model.Context * group.Rank / group.Size;
        int own = (Model.Context * (group.Rank + 1) / group.Size) - begin;
        var options = new AttendOptions { QueryHeads = Model.Heads, KvHeads = Model.KvHeads, HeadDim = Model.Dim, ValueDim = Model.Dim };
        (outputs[^1], _) = group.Attend(Model.Queries(0, Model.Context), Model.Keys(0, begin, own), Model.Values(0, begin, own), options);
        return outputs;
    }
}

static float Compare(float[][] actual, float[][] expected) =>
    actual.Zip(expected).Max(pair => pair.First.Zip(pair.Second).Max(numbers => Math.Abs(numbers.First - numbers.Second)));

// Stands for a model: numbers that every rank makes alike.
internal static class Model
{
    public const int Context = 3000, Chunk = 250, Steps = 8, Heads = 8, KvHeads = 2, Dim = 64;

    public static float[] Queries(int layer, int token) => Numbers(1 + layer, token, 1, Heads * Dim);

    public static float[] Keys(int layer, int first, int count) => Numbers(11 + layer, first, count, KvHeads * Dim);

    public static float[] Values(int layer, int first, int count) => Numbers(21 + layer, first, count, KvHeads * Dim);

    private static float[] Numbers(int seed, int first, int count, int width) =>
        [.. Enumerable.Range(first, count).SelectMany(token =>
        {
            var random = new Random((seed * 1_000_003) + token);
            return Enumerable.Range(0, width).Select(_ => (2 * random.NextSingle()) - 1);
        })];
}
