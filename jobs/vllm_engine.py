"""Writes responses with vLLM, in the process of the rank: a second, whole copy of the base, and the policy's adapter as
it is at each rollout.

The adapter goes to vLLM beside the base and is not merged into it, as TRL's trl.generation does it: merging rounds the
base, which the other roles use too.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy import float64
from numpy.typing import NDArray

from launcher.contract.spec import Spec

from .errors import JobError
from .model import save_weights
from .roles import POLICY

if TYPE_CHECKING:
    import torch

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for; a smaller adapter is padded (vLLM 0.32, config/lora.py)."""
BLOCK = 128
"""Tokens of the largest block of keys and values that vLLM hands out by default, that of its CPU backend."""


def check_installed() -> None:
    """Whether vLLM is there.

    Raises:
        JobError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise JobError(
            "ppo.engine: vllm is not installed where the run trains; install it there (docs/ppo.md), "
            "or set ppo.engine: builtin"
        )


class VllmEngine:
    """An engine for the policy of ``model`` (a peft model), as wide as the rollouts of ``spec``.

    Collective, for vLLM makes its process groups from all ranks; each rank then has an engine of its own.
    """

    def __init__(self, model: Any, spec: Spec, *, is_cpu: bool) -> None:
        # In this process, requests are taken up in their order and not as they arrive: batches, and with them the
        # last bits of logits, are the same in each run.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        # The cores of a rank are the launcher's business.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import EngineArgs, LLMEngine

        asked, batch, length = spec.require_model(), spec.ppo.generation_batch, spec.require_data().max_length
        config = model.peft_config[POLICY]
        # One block more than the sequences fill: vLLM keeps the first one to itself (v1, core/block_pool.py).
        cache = batch * _count_bytes(model.config, asked.dtype, length) + _count_bytes(model.config, asked.dtype, BLOCK)
        self._model = model
        self._rollouts = 0
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=config.base_model_name_or_path,
                revision=config.revision,
                trust_remote_code=asked.trust_remote_code,
                skip_tokenizer_init=True,
                dtype=asked.dtype,
                seed=spec.train.seed,
                max_model_len=length,
                max_num_seqs=batch,
                # Of a cached prefix the last bits are those of the batch that it was computed in.
                enable_prefix_caching=False,
                kv_cache_memory_bytes=cache,
                # With a cache of a given size, this is only what must be free of a GPU at the start.
                gpu_memory_utilization=0.01,
                enable_lora=True,
                max_lora_rank=next(rank for rank in RANKS if rank >= config.r),
                # Not "uni", which would place the engines of all ranks on the first GPU.
                distributed_executor_backend="external_launcher",
                # Compiling takes minutes on a CPU, and saves little.
                enforce_eager=is_cpu,
            )
        )

    def generate(
        self,
        prompts: list[list[int]],
        noise: NDArray[float64],
        weights: "dict[str, torch.Tensor]",
        *,
        temperature: float,
        stop: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> list[list[int]]:
        """A response to each prompt, in their order: at most ``noise.shape[1]`` tokens, the last of them ``stop`` where
        the model came to an end.

        ``noise``: as in :func:`jobs.generate.generate`; here the first number of a response is its seed. ``weights``:
        the trained ones as they are now (:func:`jobs.gather.gather_trained`).
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        self._rollouts += 1
        responses: list[list[int]] = [[] for _ in prompts]
        with tempfile.TemporaryDirectory(prefix="policy-") as folder:
            save_weights(self._model, Path(folder), weights)
            # By a number that it has seen it would take the adapter of that rollout.
            policy = LoRARequest(f"policy-{self._rollouts}", self._rollouts, folder)
            for index, prompt in enumerate(prompts):
                params = SamplingParams(
                    temperature=temperature,
                    max_tokens=noise.shape[1],
                    stop_token_ids=[stop],
                    ignore_eos=True,
                    # numpy draws multiples of 2**-53: as a seed none of it is lost.
                    seed=int(noise[index, 0] * 2**53),
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                self._engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=policy)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    responses[int(output.request_id)] = list(output.outputs[0].token_ids)
                on_step()
        return responses


def _count_bytes(config: Any, dtype: str, tokens: int) -> int:
    """Of the keys and values of a sequence of ``tokens``, in whole blocks."""
    import torch

    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    blocks = -(-tokens // BLOCK)
    return int(2 * text.num_hidden_layers * heads * size * getattr(torch, dtype).itemsize * blocks * BLOCK)
