"""What vLLM makes of token ids. Runs in vLLM's own environment, which has no radistill: a file in, a file out.

    python benchmarks/common/vllm/tokens.py REQUEST.json ANSWER.json

The request has `folder`, `dtype`, `prompts` (token ids, one batch), `count` (tokens to write after each) and `texts`
(token ids to read). The answer has vLLM's `version`; `written`, the greedy tokens after each prompt, with the
`log_probabilities` of these; and `likeliest`, for each text and each of its tokens but the first the token that was
likeliest there.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Answer the request."""
    import vllm

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = vllm.LLM(request["folder"], dtype=request["dtype"], max_model_len=512, enforce_eager=True)

    def run(texts: list[list[int]], **settings: int) -> list[vllm.RequestOutput]:
        parameters = vllm.SamplingParams(temperature=0, **settings)
        return engine.generate([{"prompt_token_ids": tokens} for tokens in texts], parameters)

    written = [answer.outputs[0] for answer in run(request["prompts"], max_tokens=request["count"], logprobs=1)]
    read = run(request["texts"], max_tokens=1, prompt_logprobs=1)
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
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
