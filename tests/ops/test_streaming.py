"""Banks that stay on the host: their rows reach the device in chunks, each of them once."""

import pytest
import torch

from robustft.backends.search import streaming


class LateLane:
    """A device whose copies run when they are waited for, and work when it is queued."""

    def __init__(self, device):
        self.queue, self.done = [], 0

    def pinned(self, shape, dtype):
        return torch.full(shape, torch.nan, dtype=dtype)

    def record(self):
        return 0

    def copy(self, host, chunk, after):
        assert after == 0  # the work on the buffer, recorded
        self.queue.append((host, chunk))
        return len(self.queue)

    def wait(self, event):
        self._run(event or 0)

    synchronize = wait

    def _run(self, upto):
        while self.done < upto:
            host, chunk = self.queue[self.done]
            chunk.copy_(host)
            self.done += 1


@pytest.mark.parametrize("lane", [streaming._Lane, LateLane])
@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_a_stream_brings_every_row_once(lane, size, monkeypatch):
    monkeypatch.setattr(streaming, "_Lane", lane)
    rows = torch.arange(33.0).reshape(11, 3)

    def fill(first, last, out):
        out.copy_(rows[first:last])

    seen = []
    for first, part in streaming.stream(fill, 11, 3, torch.float32, rows.device, size):
        assert first == sum(map(len, seen))
        assert len(part) <= size
        seen.append(part.clone())
    assert torch.equal(torch.cat(seen), rows)


def test_a_chunk_is_a_small_part_of_the_memory(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(streaming, "free_bytes", lambda _: 1 << 30)
    assert 1 << 20 < streaming.chunk_rows(1024, device) * 1024 * 2 <= 1 << 27
    monkeypatch.setattr(streaming, "free_bytes", lambda _: 1 << 20)
    assert streaming.chunk_rows(1024, device) == 64
    monkeypatch.setattr(streaming, "free_bytes", lambda _: 0)
    assert streaming.chunk_rows(1024, device) == 1
