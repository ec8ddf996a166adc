"""PyTorch's attention on the same numbers: SDPA by each of its backends, and FlexAttention; checked first, timed in interleaved rounds.

Keys and values lie head-major and contiguous, which is these kernels' best case. For decode every SDPA backend is also tried with the query
heads of a KV head folded into the query length ("folded"): the same sums, and each key is read once for all of them.
"""

import math
import statistics
import time

import synthetic

FLUSH_BYTES = 256 << 20  # more than the caches hold: calls find them cold, as treeattn's do
CHUNK = 1 << 16  # positions made at once


class Unavailable(Exception):
    pass


class PyTorch:
    def __init__(self):
        try:
            import torch
            import torch._dynamo
            import torch.nn.attention
        except ImportError as error:
            raise Unavailable(f"python3 has no PyTorch ({error})") from error
        if not torch.cuda.is_available():
            raise Unavailable(f"PyTorch {torch.__version__} sees no CUDA device")
        self.torch = torch
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def facts(self):
        torch = self.torch
        return {
            "gpu": torch.cuda.get_device_name(),
            "gpu memory": torch.cuda.mem_get_info()[1],
            "pytorch": torch.__version__,
            "cuda of pytorch": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def free_memory(self):
        self.torch.cuda.empty_cache()
        return self.torch.cuda.mem_get_info()[0]

    def load(self, cell):
        """Queries, keys and values of the cell in its storage type, [batch, heads, length, dim]."""
        torch = self.torch
        dtype = torch.bfloat16 if cell.dtype == "bf16" else torch.float16

        def tensor(which, heads, length, dim):
            whole = torch.empty(cell.batch, heads, length, dim, dtype=dtype, device="cuda")
            step = max(1, CHUNK // (cell.batch * heads))
            for first in range(0, length, step):
                count = min(step, length - first)
                part = synthetic.numbers(torch, which, cell.batch, heads, first, count, dim, device="cuda")
                whole[:, :, first : first + count] = part
            return whole

        query = tensor(synthetic.QUERY, cell.heads, cell.query_len, cell.head_dim)
        key = tensor(synthetic.KEY, cell.kv_heads, cell.context, cell.head_dim)
        if cell.value_from_key:
            value = key[..., : cell.value_from_key]
        else:
            value = tensor(synthetic.VALUE, cell.kv_heads, cell.context, cell.value_dim)
        return query, key, value

    def contestants(self, cell):
        """Name and function of (query, key, value) for everything that may be able to compute the cell."""
        backends = self.torch.nn.attention.SDPBackend
        for name, backend in (
            ("flash", backends.FLASH_ATTENTION),
            ("cudnn", backends.CUDNN_ATTENTION),
            ("efficient", backends.EFFICIENT_ATTENTION),
        ):
            yield f"sdpa-{name}", self._sdpa(cell, backend, folded=False)
            if not cell.causal and cell.heads > cell.kv_heads:
                yield f"sdpa-{name}-folded", self._sdpa(cell, backend, folded=True)
        yield "flex", self._flex_attention(cell)

    def _sdpa(self, cell, backend, folded):
        torch = self.torch
        group = cell.heads // cell.kv_heads

        def call(query, key, value):
            if folded:
                query = query.view(cell.batch, cell.kv_heads, group, cell.head_dim)
            with torch.nn.attention.sdpa_kernel(backend):
                output = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, is_causal=cell.causal, enable_gqa=not folded and group > 1
                )
            return output.reshape(cell.batch, cell.heads, cell.query_len, cell.value_dim)

        return call

    def _flex_attention(self, cell):
        torch = self.torch
        compiled, mask = None, None

        def call(query, key, value):
            nonlocal compiled, mask
            if compiled is None:
                from torch.nn.attention.flex_attention import create_block_mask, flex_attention

                torch._dynamo.reset()  # after some shapes it would stop to compile, and run the formula instead
                compiled = torch.compile(flex_attention, dynamic=False)
                if cell.causal:
                    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, cell.query_len, cell.context, device="cuda")
            return compiled(query, key, value, block_mask=mask, enable_gqa=cell.heads > cell.kv_heads)

        return call

    def reference(self, cell, query, key, value):
        """Exact rows to hold outputs against: (batch, head, row) with its float64 output and the error that is allowed.

        Allowed is twice the error of the plain formula in the storage type (flash-attn's rule), and 1e-5.
        """
        torch = self.torch
        scale = cell.head_dim**-0.5
        group = cell.heads // cell.kv_heads
        rows = sorted({0, cell.query_len // 3, cell.query_len - 1})
        expected = []
        for batch, head in sorted({(0, 0), (cell.batch - 1, cell.heads - 1), (cell.batch // 2, cell.heads // 2)}):
            keys, values = key[batch, head // group], value[batch, head // group]
            for row in rows:
                seen = row + 1 + cell.context - cell.query_len if cell.causal else cell.context
                q, k, v = query[batch, head, row], keys[:seen], values[:seen]
                exact = torch.softmax((k.double() @ q.double()) * scale, 0) @ v.double()
                naive = torch.softmax((k @ q) * scale, 0) @ v
                allowed = 2 * (naive.double() - exact).abs().max().item() + 1e-5
                expected.append((batch, head, row, exact, allowed))
        return expected

    def check(self, output, expected):
        """The largest error, its bound, and how many rows lie outside theirs."""
        worst, bound, wrong = 0.0, 0.0, 0
        for batch, head, row, exact, allowed in expected:
            error = (output[batch, head, row].double() - exact).abs().max().item()
            wrong += not error <= allowed
            if not error <= worst:
                worst, bound = error, allowed
        return {"error_max": worst if math.isfinite(worst) else None, "error_bound": bound, "wrong": wrong}

    def graph_of(self, call, tensors):
        """The call as a CUDA graph; None where it cannot be captured."""
        torch = self.torch
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                call(*tensors)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call(*tensors)
            return graph
        except RuntimeError:
            torch.cuda.synchronize()
            return None

    def time_call(self, call, tensors):
        """Microseconds of one call and the wait for it, by the host's clock."""
        self._flush.zero_()
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        call(*tensors)
        self.torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e6

    def time_graph(self, graph):
        """Microseconds of one replay on the device, by events; enqueued while the caches are flushed, so that no launch is waited for."""
        torch = self.torch
        self._flush.zero_()
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        return before.elapsed_time(after) * 1e3


class Contest:
    """PyTorch's contestants over one cell: those that gave right rows, timed round after round."""

    def __init__(self, pytorch, cell, seconds):
        self._pytorch = pytorch
        self.entries, self.refused = {}, {}
        self._tensors = pytorch.load(cell)
        expected = pytorch.reference(cell, *self._tensors)
        deadline = time.monotonic() + seconds
        for name, call in pytorch.contestants(cell):
            if time.monotonic() > deadline:
                self.refused[name] = "no time is left for this cell"
                continue
            try:
                checked = pytorch.check(call(*self._tensors), expected)
                graph = pytorch.graph_of(call, self._tensors)
            except Exception as error:  # whatever a backend says that it cannot do
                self.refused[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
                pytorch.torch.cuda.synchronize()
                continue
            self.entries[name] = {"call": call, "graph": graph, "checked": checked, "calls": [], "replays": []}

    def run(self, rounds):
        """Timed rounds, every contestant once in each, forth and back in turn."""
        for number in range(rounds):
            order = list(self.entries.values())
            for entry in order if number % 2 == 0 else reversed(order):
                entry["calls"].append(self._pytorch.time_call(entry["call"], self._tensors))
                if entry["graph"] is not None:
                    entry["replays"].append(self._pytorch.time_graph(entry["graph"]))

    def results(self):
        """Name and numbers of each contestant."""
        for name, entry in self.entries.items():
            replays = entry["replays"]
            yield name, {
                "call_us": statistics.median(entry["calls"]),
                "min_us": min(entry["calls"]),
                "device_us": statistics.median(replays) if replays else None,
                **entry["checked"],
            }
