"""What is measured, in the order of importance: time may run out before the list does."""

from dataclasses import dataclass

K = 1024
BYTES = {"bf16": 2, "f16": 2}


@dataclass(frozen=True)
class Cell:
    """One shape of attention. Decode: one query a row over `context` keys. Prefill: as many queries as keys, causal."""

    kind: str
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    batch: int = 1
    value_from_key: int | None = None  # MLA: values are the first elements of the keys

    @property
    def value_dim(self):
        return self.value_from_key or self.head_dim

    @property
    def query_len(self):
        return 1 if self.kind == "decode" else self.context

    @property
    def causal(self):
        return self.kind == "prefill"

    @property
    def kv_elements(self):
        """Elements of all keys and values, each counted once."""
        dims = self.head_dim + (0 if self.value_from_key else self.value_dim)
        return self.batch * self.context * self.kv_heads * dims

    @property
    def kv_bytes(self):
        return self.kv_elements * BYTES[self.dtype]

    @property
    def operations(self):
        """Useful multiplications and additions."""
        keys = (self.context + 1) / 2 if self.causal else self.context
        return 2.0 * (self.head_dim + self.value_dim) * self.heads * self.batch * self.query_len * keys

    @property
    def name(self):
        context = f"{self.context // K}k" if self.context % K == 0 else str(self.context)
        return f"{self.kind} {context} x{self.batch} {self.heads}/{self.kv_heads}/{self.head_dim} {self.dtype}"

    def options(self):
        """The command-line options of treeattn bench for this shape."""
        options = ["-b", str(self.context), "--batch", str(self.batch), "--heads", str(self.heads), "--kv-heads", str(self.kv_heads)]
        options += ["--head-dim", str(self.head_dim), "--dtype", self.dtype]
        if self.value_from_key:
            options += ["--value-from-key", str(self.value_from_key)]
        if self.causal:
            options += ["--query-len", "0", "--causal"]
        return options


def decode_cells():
    llama, wide, full, mla = (32, 8, 128), (64, 8, 128), (32, 32, 128), (128, 1, 576)
    cells = [Cell("decode", n * K, *llama, "bf16") for n in (1024, 8, 16, 512, 256, 32, 64, 128)]
    cells += [Cell("decode", n * K, *llama, "bf16", batch) for n, batch in ((8, 64), (8, 8), (32, 16))]
    cells += [Cell("decode", n * K, *mla, "bf16", value_from_key=512) for n in (512, 8, 64)]
    cells += [Cell("decode", n * K, *wide, "bf16") for n in (512, 8, 64)]
    cells += [Cell("decode", n * K, *full, "bf16") for n in (128, 8, 32)]
    cells += [Cell("decode", n * K, *llama, "f16") for n in (512, 8, 64)]
    cells += [Cell("decode", 1024 * K, *wide, "bf16"), Cell("decode", 1024 * K, *mla, "bf16", value_from_key=512)]
    cells += [Cell("decode", 8 * K, *shape, "bf16", 16) for shape in (wide, full)]
    return cells


def prefill_cells():
    llama, wide, full = (32, 8, 128), (64, 8, 128), (32, 32, 128)
    cells = [Cell("prefill", n * K, *llama, "bf16") for n in (8, 4, 16, 2, 32)]
    cells += [Cell("prefill", 8 * K, *llama, "f16"), Cell("prefill", 8 * K, *full, "bf16"), Cell("prefill", 8 * K, *wide, "bf16")]
    return cells


# Rows of the state that is combined: a decode step of 32 heads, and of a batch of 16.
COMBINE_RANKS = (2, 4, 8)
COMBINE_BATCHES = (1, 16)
