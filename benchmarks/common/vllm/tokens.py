"""What vLLM makes of token ids. Runs in vLLM's own environment, which has no radistill: a file in, a file out.

    python benchmarks/common/vllm/tokens.py REQUEST.json ANSWER.json

The request has `folder`, `dtype`, `prompts` (token ids, one batch), `count` (tokens to write after each) and `texts`
(token ids to read). The answer has vLLM's `version`; `written`, the greedy tokens after each prompt, with the
`log_probabilities` of these; and `likeliest`, for each text and each of its tokens but the first the token that was
likeliest there. With a `draft` (a folder) and its `draft_length`, that model drafts, and the answer says how many
tokens were `drafted` and `accepted`, in how many `rounds`.
"""

import json
import sys
from pathlib import Path

COUNTS = {"rounds": "drafts", "drafted": "draft_tokens", "accepted": "accepted_tokens"}


def main() -> None:
    """Answer the request."""
    import vllm

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    settings = {"dtype": request["dtype"], "max_model_len": 512, "enforce_eager": True, "disable_log_stats": False}
    if draft := request.get("draft"):
        length = request["draft_length"]
        settings["speculative_config"] = {"method": "draft_model", "model": draft, "num_speculative_tokens": length}
    engine = vllm.LLM(request["folder"], **settings)

    def run(texts: list[list[int]], **settings: int) -> list[vllm.RequestOutput]:
        parameters = vllm.SamplingParams(temperature=0, **settings)
        return engine.generate([{"prompt_token_ids": tokens} for tokens in texts], parameters)

    written = [answer.outputs[0] for answer in run(request["prompts"], max_tokens=request["count"], logprobs=1)]
    counts = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    read = run(request["texts"], max_tokens=1, prompt_logprobs=1) if request["texts"] else []
    answer = {
        "version": vllm.__version__,
        "written": [list(one.token_ids) for one in written],
        "log_probabilities": [
            [place[token].logprob for place, token in zip(one.logprobs, one.token_ids, strict=True)] for one in written
        ],
        "likeliest": [
            [next(token for token, entry in place.items() if entry.rank == 1) for place in one.prompt_logprobs[1:]]
            for one in read
        ],
        **{name: counts.get(f"vllm:spec_decode_num_{key}") for name, key in COUNTS.items()},
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
