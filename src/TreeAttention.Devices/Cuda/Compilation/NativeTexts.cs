using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace TreeAttention.Devices;

/// <summary>Texts as C reads them: an array of pointers to NUL-terminated UTF-8.</summary>
internal sealed unsafe class NativeTexts : IDisposable
{
    private readonly int _count;
    private sbyte** _texts;

    internal NativeTexts(IReadOnlyList<string> texts)
    {
        _count = texts.Count;
        _texts = (sbyte**)NativeMemory.Alloc((nuint)Math.Max(1, _count), (nuint)sizeof(sbyte*));
        for (int i = 0; i < _count; i++)
        {
            _texts[i] = (sbyte*)Marshal.StringToCoTaskMemUTF8(texts[i]);
        }
    }

    /// <summary>The array.</summary>
    internal sbyte** Pointers => _texts;

    public void Dispose()
    {
        if (_texts != null)
        {
            for (int i = 0; i < _count; i++)
            {
                Marshal.FreeCoTaskMem((nint)_texts[i]);
            }

            NativeMemory.Free(_texts);
            _texts = null;
        }
    }
}
