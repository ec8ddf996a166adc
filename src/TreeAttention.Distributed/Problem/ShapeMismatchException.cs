using System;

namespace TreeAttention.Distributed;

/// <summary>Two things that must agree in shape do not, or a shape describes no attention call.</summary>
public sealed class ShapeMismatchException(string message) : ArgumentException(message);
