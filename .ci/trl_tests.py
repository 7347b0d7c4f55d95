"""TRL's own GRPO tests, run twice: with its trainer, and with ours in its place.

    python .ci/trl_tests.py TRL/tests [--max-steps 4] [-k EXPRESSION]

``TRL/tests`` is the folder of a checkout of TRL that fits the installed release; its ``test_grpo_trainer.py`` is run from
there and nothing of it is kept. In the second run ``trl.GRPOTrainer`` is ``EstimatorTrainer`` with
``adv_estimator="grpo"`` and ``compat="trl"``. The tests' models and data lie on a hub; stand-ins of the same names
and kinds, with random weights, are made in a temporary folder (not for images: those tests fail both times). Nothing
here needs a GPU or a network.

Prints the tests whose outcome differs, and the counts. Exit code 1 if one that passes with TRL's does not with ours,
unless ours refuses its setting by name (``InputError``), which is listed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

VOCABULARY = 151_665  # Qwen2's, whose numbers the tests use
SPECIAL = {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
ADDED = {"<tool_call>": 151_657, "</tool_call>": 151_658, "<|finetune_right_pad_id|>": 151_660}
# Words that the tests spell as numbers.
WORDS = {
    '{"': 4913, "name": 606, '":': 788, ' "': 330, "multiply": 64648, "_tool": 22785, '",': 497, "arguments": 16370,
    ' {"': 5212, "}}\n": 11248, " don": 1513, "'t": 944, " know": 1414, " any": 894, " tool": 5392, "Done": 17453,
    "async": 7692, "_multiply": 93054,
}  # fmt: skip
PROMPTS = (
    "Beautiful is better than", "Explicit is", "Simple is better", "Complex", "Flat is better than", "Sparse is better",
    "Readability", "Special cases aren't special", "Although practicality beats", "Errors should never",
    "Unless explicitly", "In the face of ambiguity, refuse", "There should be one", "Now is better",
    "If the implementation is hard", "If the implementation is easy", "Namespaces are",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- as a command


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", type=Path, help="TRL's folder of tests")
    parser.add_argument("--max-steps", type=int, help="stop each training that early")
    parser.add_argument("-k", default="", help="as for pytest")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        stand_ins(Path(scratch))
        stock, ours = (outcomes(whose, chosen, Path(scratch)) for whose in ("stock", "ours"))
    return report(stock, ours)


def outcomes(whose, chosen, scratch):
    """Each test's outcome, run with that trainer."""
    answer = scratch / f"{whose}.xml"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "RLE_TRL_TESTS": json.dumps({"whose": whose, "max_steps": chosen.max_steps}),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", Path(__file__).stem]
    command += ["-p", "no:cacheprovider", "-p", "no:rerunfailures", "-p", "no:asyncio", "-m", "not slow"]
    command += ["--rootdir", str(chosen.tests), "--junitxml", str(answer), "-k", chosen.k]
    done = subprocess.run(
        [*command, str(chosen.tests.resolve() / "test_grpo_trainer.py")],
        cwd=scratch,  # a model's name is the path of its stand-in
        env=environment,
        capture_output=True,
        text=True,
    )
    if not answer.exists():
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return read(answer)


def read(answer):
    """Each test's outcome in pytest's report, and the first line of its message."""
    found = {}
    for case in ElementTree.parse(answer).iter("testcase"):
        kind = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        word = "passed" if kind is None else kind.tag
        message = "" if kind is None else (kind.get("message", "").strip().splitlines() or [""])[0]
        found[f"{case.get('classname')}::{case.get('name')}"] = (word, message)
    return found


def report(stock, ours):
    """Print what differs; whether ours fails where TRL's passes."""
    wrong = 0
    for test, (word, _) in stock.items():
        other, message = ours.get(test, ("missing", ""))
        if other == word:
            continue
        refused = message.startswith("rl_estimators.errors.InputError")
        wrong += word == "passed" and not refused
        print(f"{test}: {word} with TRL's, {'refused' if refused else other} with ours: {message[:160]}")
    for whose, found in (("TRL's", stock), ("ours", ours)):
        counts = Counter(word for word, _ in found.values())
        print(f"{whose:6s} " + ", ".join(f"{number} {word}" for word, number in sorted(counts.items())))
    for message, number in Counter(m for word, m in stock.values() if word == "failure").most_common():
        print(f"  with TRL's {number} x {message[:160]}")
    return int(wrong > 0)


# -------------------------------------------------------------------------------------------- as pytest's plugin


def pytest_configure(config):
    """Before the tests are imported: no GPU is no reason to stop, and whose trainer it is."""
    config.addinivalue_line("markers", "slow: as TRL marks them")
    import torch
    import transformers.training_args
    import trl

    torch.set_num_threads(1)
    # bf16 is TRL's default and works on a CPU, but transformers asks for a GPU
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    chosen = json.loads(os.environ["RLE_TRL_TESTS"])
    trainer, base, extra = trl.GRPOTrainer, trl.GRPOConfig, {}
    if chosen["whose"] == "ours":
        from rl_estimators.trl import EstimatorConfig, EstimatorTrainer

        trainer, base = EstimatorTrainer, EstimatorConfig
        extra = {"adv_estimator": "grpo", "adv_estimator_kwargs": {"compat": "trl"}}
    if chosen["max_steps"]:
        extra["max_steps"] = chosen["max_steps"]

    def made(*args, **kwargs):
        return base(*args, **{**extra, **kwargs})

    trl.GRPOTrainer, trl.GRPOConfig = trainer, made


# ------------------------------------------------------------------------------------------------- stand-ins


def stand_ins(root):
    """Models, tokenizers and data under the names that the tests have for them."""
    import transformers
    from trl import chat_template_utils

    folder = root / "trl-internal-testing"
    templates = Path(chat_template_utils.__file__).parent / "chat_templates"
    small = {
        "vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None,
        "eos_token_id": SPECIAL["<|im_end|>"], "pad_token_id": SPECIAL["<|endoftext|>"],
    }  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 2}
    kinds = {
        "tiny-Qwen2ForCausalLM-2.5": ("Qwen2", "CausalLM", {}),
        "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2", "SequenceClassification", {"num_labels": 1}),
        "tiny-LlamaForSequenceClassification-3.2": ("Llama", "SequenceClassification", {"num_labels": 1}),
        "tiny-Qwen3ForSequenceClassification": ("Qwen3", "SequenceClassification", {"num_labels": 1}),
        "tiny-Qwen3ForCausalLM": ("Qwen3", "CausalLM", {"head_dim": 2}),
        "tiny-Qwen3MoeForCausalLM": ("Qwen3Moe", "CausalLM", experts),
        "tiny-Gemma2ForCausalLM": ("Gemma2", "CausalLM", {"head_dim": 2}),
    }
    transformers.set_seed(0)
    transformers.utils.logging.disable_progress_bar()
    for name, (family, kind, more) in kinds.items():
        settings = getattr(transformers, f"{family}Config")(**small, **more)
        getattr(transformers, f"{family}For{kind}")(settings).save_pretrained(folder / name)
        tokenizer = make_tokenizer(transformers)
        template = "qwen3.jinja" if family.startswith("Qwen3") else "qwen2_5.jinja"
        tokenizer.chat_template = (templates / template).read_text()
        tokenizer.save_pretrained(folder / name)
    write_data(folder / "zen")


def make_tokenizer(transformers):
    """One byte a token, with Qwen2's numbers for the words that the tests spell, and fillers for the rest."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = visible + [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) if byte in visible else chr(256 + n) for n, byte in enumerate(sorted(set(range(256)) - set(visible)))}  # fmt: skip
    letters.update({byte: chr(byte) for byte in visible})
    vocabulary = {letters[byte]: number for number, byte in enumerate(order)}
    vocabulary |= {"".join(letters[b] for b in word.encode()): number for word, number in WORDS.items()}
    vocabulary |= SPECIAL | ADDED
    taken = set(vocabulary.values())
    vocabulary |= {f"zq{number}": number for number in range(VOCABULARY) if number not in taken}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|finetune_right_pad_id|>"],
        padding_side="left",
    )
    plain = [
        transformers.AddedToken(word, special=False, normalized=False)
        for word in ("<tool_call>", "</tool_call>")
    ]
    tokenizer.add_tokens(plain)
    return tokenizer


def write_data(folder):
    """The prompts, as text and as messages, in the two splits that the tests load."""
    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for name in ("standard_prompt_only", "conversational_prompt_only"):
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, prompts in (("train", PROMPTS), ("test", PROMPTS[:3])):
            rows = [
                {"prompt": text if name.startswith("standard") else [{"role": "user", "content": text}]}
                for text in prompts
            ]
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {path.name}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


if __name__ == "__main__":
    sys.exit(main())
