namespace TreeAttention.Runtime;

/// <summary>The tensor file formats that are read.</summary>
internal enum TensorFormat
{
    /// <summary>numpy's .npy, versions 1.0, 2.0 and 3.0: one tensor.</summary>
    Npy,

    /// <summary>Hugging Face's .safetensors: named tensors.</summary>
    Safetensors,
}
