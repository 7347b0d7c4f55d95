"""Loaded into verl's processes by a test: writes down every request to the rollout engine and its whole answer.

Set ``VERL_USE_EXTERNAL_MODULES=greedy_witness`` and ``RLE_TEST_REQUESTS`` to a folder. A file named ``fail`` in
it makes the next greedy request fail, and is removed.
"""

import functools
import json
import os
from pathlib import Path

from rl_estimators.imports import when_imported

FOLDER = Path(os.environ["RLE_TEST_REQUESTS"])


def witness(module):
    for client in (module.LLMServerClient, module.FullyAsyncLLMServerClient):
        client.generate = watched(client)


def watched(client):
    original = client.generate

    @functools.wraps(original)
    async def generate(self, *args, prompt_ids, sampling_params, **kwargs):
        if type(self) is not client:  # a part of a request that the asynchronous client resumes when aborted
            return await original(
                self, *args, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs
            )
        if sampling_params["temperature"] == 0 and (FOLDER / "fail").exists():
            (FOLDER / "fail").unlink()
            raise RuntimeError("made to fail by a test")
        output = await original(self, *args, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs)
        request = [sampling_params["temperature"], list(prompt_ids), list(output.token_ids)]
        with (FOLDER / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(request) + "\n")
        return output

    return generate


when_imported("verl.workers.rollout.llm_server", witness)
