"""What scores a response: the spec's ppo.reward, unless it is an adapter on the policy's own base (jobs/roles.py)."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.contract.adapter import read_adapter_config
from launcher.contract.spec import Model, Ppo

from .adapter import Origin, find_base
from .errors import JobError
from .prompts import Said, as_messages

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Answer:
    """A prompt as the row has it, the response to it as tokens and as text, whether it came to an end."""

    said: Said
    ids: list[int]
    text: str
    has_ended: bool


Scorer = Callable[[list[Answer]], list[float]]


def find_adapter(reward: str, origin: Origin) -> Path | None:
    """The folder of ``reward`` if it is a reward run's adapter on the policy's own base.

    Raises:
        JobError: it is an adapter of something else than rewards, or its base is not to be found.
    """
    folder = Path(reward)
    config = read_adapter_config(folder) if folder.is_dir() else None
    if config is None:
        return None
    if config.get("task_type") != "SEQ_CLS":
        raise JobError(f"ppo.reward: {folder} holds no reward model; name the final/ of a stage: reward")
    base = find_base(folder, config.get("base_model_name_or_path") or "", "ppo.reward")
    # The policy's may be named through a link, by which find_base has gone.
    mine = Path(origin.base.base)
    same = base == (str(mine.resolve()) if mine.is_dir() else origin.base.base)
    return folder if same and config.get("revision") == origin.base.revision else None


def make_scorer(ppo: Ppo, model: Model, device: "torch.device") -> Scorer:
    """The scorer that ``ppo.reward`` names.

    Raises:
        JobError: it does not load.
    """
    reward = ppo.reward or ""
    if reward == "builtin:length":
        return lambda answers: [len(answer.ids) / ppo.max_new_tokens for answer in answers]
    file, colon, function = reward.rpartition(":")
    if colon and file.endswith(".py"):
        return _make_from_function(Path(file), function)
    return _make_from_model(reward, model, device)


def _make_from_function(path: Path, name: str) -> Scorer:
    """``name(prompts, completions)`` of a file of the user's: prompts as the rows have them, and texts, to scores."""
    # What it imports from beside it is found, as when it is run.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise JobError(f"ppo.reward: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except Exception as error:
        raise JobError(f"ppo.reward: {path}:{name}: {type(error).__name__}: {error}") from error

    def score(answers: list[Answer]) -> list[float]:
        scores = function([answer.said for answer in answers], [answer.text for answer in answers])
        try:
            numbers = [float(value) for value in scores]
        except (TypeError, ValueError) as error:
            raise JobError(f"ppo.reward: {name} gave no list of numbers: {error}") from error
        if len(numbers) != len(answers):
            raise JobError(f"ppo.reward: {name} gave {len(numbers)} scores for {len(answers)} responses")
        return numbers

    return score


def _make_from_model(reward: str, model: Model, device: "torch.device") -> Scorer:
    """A model of rewards beside the policy's, whole on every rank: one number for a sequence, which is written as the
    model's own tokenizer has it (:func:`jobs.masking.render`)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options: dict[str, Any] = {"num_labels": 1, "dtype": getattr(torch, model.dtype)}
    missing: list[str] = []
    try:
        with load_whole():
            if read_adapter_config(Path(reward)) is not None:
                from peft import AutoPeftModelForSequenceClassification

                scorer: Any = AutoPeftModelForSequenceClassification.from_pretrained(reward, **options)
            else:
                load = AutoModelForSequenceClassification.from_pretrained
                scorer, found = load(reward, output_loading_info=True, **options)
                base = f"{scorer.base_model_prefix}."
                missing = sorted(name for name in found["missing_keys"] if not name.startswith(base))
        tokenizer: Any = AutoTokenizer.from_pretrained(reward)
    except (OSError, ValueError, RuntimeError) as error:  # the last one for a head of several labels
        raise JobError(f"ppo.reward: {reward} does not load: {error}") from error
    if missing:
        # transformers would draw one.
        raise JobError(
            f"ppo.reward: {reward} holds no reward model, for it has no {missing[0]}; name the final/ of a stage: "
            "reward, or a sequence classifier with one output"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    scorer.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    scorer.to(device).eval()

    def write(answer: Answer) -> str:
        if tokenizer.chat_template is None:
            if not isinstance(answer.said, str):
                raise JobError(
                    f"ppo.reward: a conversation needs a chat template, and the tokenizer of {reward} has none"
                )
            return answer.said + answer.text + (tokenizer.eos_token or "")
        messages = [*as_messages(answer.said), {"role": "assistant", "content": answer.text}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    has_template = tokenizer.chat_template is not None

    def score(answers: list[Answer]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(answers), ROWS_AT_ONCE):
            texts = [write(answer) for answer in answers[start : start + ROWS_AT_ONCE]]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not has_template).to(device)
            with torch.no_grad():
                scores += scorer(**inputs).logits[:, 0].float().tolist()
        return scores

    return score


@contextmanager
def load_whole() -> Iterator[None]:
    """Within it transformers loads a model whole, also where the run has told it of ZeRO-3: only the engine could put
    together what transformers would spread over the ranks, and it knows the policy's model alone."""
    from transformers.integrations import deepspeed

    # transformers 5.23 has a function that forgets it, and none that gives it back.
    module: Any = deepspeed
    told, module._hf_deepspeed_config_weak_ref = module._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        module._hf_deepspeed_config_weak_ref = told


ROWS_AT_ONCE = 8
"""Sequences that a separate reward model reads at once."""
