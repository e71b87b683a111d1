"""What gpu.py trains on: rows that fill every sequence, and models that no hub is needed for."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY, RANDOM = "builtin:tiny", "random-1b"


def write_rows(file: Path) -> None:
    """64 rows longer than any sequence: both sides cut them to the same tokens, and nothing is padded."""
    source = (ROOT / "examples" / "data" / "triage.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [" ".join(turn["content"] for turn in json.loads(line)["messages"]) for line in source]
    rows = ["\n".join(turns[start : start + 40]) for start in range(64)]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, name: str) -> str:
    """The model as a folder, where ``name`` is one that is made here."""
    from jobs.tiny import make_tokenizer, write_tiny

    if name not in (TINY, RANDOM):
        return str(Path(name).absolute()) if Path(name).is_dir() else name
    folder.mkdir()
    if name == TINY:
        write_tiny(folder)
        return str(folder)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()  # of 259 tokens; the embedding has the usual size
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
