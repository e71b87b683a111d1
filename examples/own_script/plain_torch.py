"""Sorts support messages by team, with torch.distributed alone: nothing in this file knows tuneyard.

By hand: torchrun --nproc-per-node 2 examples/own_script/plain_torch.py --rows examples/data/triage.jsonl
"""

import argparse
import json
import zlib

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

NUM_WORDS = 4096


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    options = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    messages, teams = read_rows(options.rows, device)
    model = DistributedDataParallel(torch.nn.Linear(NUM_WORDS, int(teams.max()) + 1, device=device))
    messages, teams = messages[rank::world_size], teams[rank::world_size]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    for step in range(1, options.steps + 1):
        loss = torch.nn.functional.cross_entropy(model(messages), teams)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step}  loss {loss.item():.4f}", flush=True)
    right = (model(messages).argmax(dim=1) == teams).float().mean()
    dist.all_reduce(right)
    if rank == 0:
        print(f"{right.item() / world_size:.1%} of the rows are sorted as they were taught")
    dist.destroy_process_group()


def read_rows(path: str, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which words each message has, float32 (rows, NUM_WORDS), and the number of its team, int64 (rows,)."""
    with open(path, encoding="utf-8") as file:
        rows = [[turn["content"] for turn in json.loads(line)["messages"]] for line in file]
    names = sorted({answer.split(" | ")[0] for _, answer in rows})
    messages = torch.zeros(len(rows), NUM_WORDS, device=device)
    for index, (question, _) in enumerate(rows):
        for word in question.lower().split():
            messages[index, zlib.crc32(word.encode()) % NUM_WORDS] = 1.0
    return messages, torch.tensor([names.index(answer.split(" | ")[0]) for _, answer in rows], device=device)


if __name__ == "__main__":
    main()
