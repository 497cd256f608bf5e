"""Runs inside vLLM's own environment: one JSON command a line on stdin, one JSON answer a line on stdout.

Imports nothing of the project. Commands: ``batch`` (prompts together, greedy, a fixed count of new tokens) and
``replay`` (requests that arrive at given times). vLLM's engine runs in this process, without a server before it.
"""

import json
import os
import sys
import time
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    answers, (model, dtype, clock) = os.fdopen(os.dup(1), "w"), sys.argv[1:4]
    now = time.process_time if clock == "cpu" else time.perf_counter
    os.dup2(2, 1)  # what libraries print must not mix with answers
    import torch
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # in an environment of its own

    llm = LLM(
        model=model, dtype=dtype, enforce_eager=True, max_model_len=4096, max_num_seqs=64, disable_log_stats=True,
        enable_prefix_caching=False,
    )  # fmt: skip

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    def params(count: int) -> Any:
        return SamplingParams(max_tokens=count, ignore_eos=True, temperature=0.0, detokenize=True)

    answer({"ready": True, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "batch":
            prompts = [{"prompt_token_ids": prompt} for prompt in command["prompts"]]
            started = now()
            llm.generate(prompts, params(command["new_tokens"]), use_tqdm=False)
            answer(now() - started)
        else:
            answer(replay(llm.llm_engine, command["requests"], params))


def replay(engine: Any, requests: list[dict[str, Any]], params: Any) -> list[list[float]]:
    """Return for each request when its tokens came, in seconds after its arrival."""
    started = time.perf_counter()
    times: list[list[float]] = [[] for _ in requests]
    seen, next_one, open_ones = [0] * len(requests), 0, 0
    while next_one < len(requests) or open_ones:
        now = time.perf_counter() - started
        while next_one < len(requests) and requests[next_one]["at_s"] <= now:
            request = requests[next_one]
            prompt = {"prompt_token_ids": request["prompt"]}
            engine.add_request(str(next_one), prompt, params(request["new_tokens"]))
            next_one, open_ones = next_one + 1, open_ones + 1
        if not open_ones:
            time.sleep(max(0.0, requests[next_one]["at_s"] - now))
            continue
        outputs = engine.step()
        now = time.perf_counter() - started
        for output in outputs:
            index = int(output.request_id.split("-")[0])
            count = len(output.outputs[0].token_ids)
            times[index] += [now - requests[index]["at_s"]] * (count - seen[index])
            seen[index] = count
            open_ones -= output.finished
    return times


if __name__ == "__main__":
    main()
