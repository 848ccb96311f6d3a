"""Exact nearest neighbours among a million embeddings, beside FAISS's exact index.

    python examples/knn_faiss.py --rows 1000000 --k 10

Both answers are compared, and both times printed: the index is built once, and searched --repeats
times in turn, of which the shortest counts. By default as many rows are taken as fit into a quarter
of the memory that is free, at most a million.
"""

import argparse
import os
import time

import torch
from torch.nn import functional as F

from robustft.ops import FeatureBank, knn


def rows_that_fit(dim):
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    each = dim * (4 + 4 + 4 + 1)  # the rows, FAISS's copy, the bank's copy and its int8 form
    return max(1_000, min(1_000_000, free // 4 // each))


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    rows = args.rows or rows_that_fit(args.dim)

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(256, args.dim, generator=generator)  # embeddings come in clusters

    def embeddings(count):
        near = centres[torch.randint(256, (count,), generator=generator)]
        return F.normalize(near + torch.randn(count, args.dim, generator=generator), dim=1)

    bank_rows, queries = embeddings(rows), embeddings(args.queries)
    start = time.perf_counter()
    bank = FeatureBank(bank_rows)
    print(f"{rows:,} × {args.dim}: packed in {time.perf_counter() - start:.1f} s")
    searches = {"robustft": lambda: knn(queries, bank, k=args.k)}
    try:
        import faiss
    except ImportError:
        print("faiss is not installed: pip install faiss-cpu")
    else:
        index = faiss.IndexFlatL2(args.dim)
        index.add(bank_rows.numpy())
        searches["FAISS"] = lambda: map(torch.from_numpy, index.search(queries.numpy(), args.k))

    times, found = {name: [] for name in searches}, {}
    for _ in range(args.repeats):
        for name, search in searches.items():
            start = time.perf_counter()
            found[name] = tuple(search())
            times[name].append(time.perf_counter() - start)
    for name, taken in times.items():
        print(f"{name:9} {1000 * min(taken):8.1f} ms for {args.queries:,} queries, k = {args.k}")
    if "FAISS" in found:
        same = (found["robustft"][1] == found["FAISS"][1]).float().mean().item()
        print(f"{100 * same:.3f} % of the neighbours are the same; ties and rounding are the rest")
        return same
    return None


if __name__ == "__main__":
    main()
