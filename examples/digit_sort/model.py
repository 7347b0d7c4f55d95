"""The model: a small Qwen2 that has half learned to sort, and its tokenizer.

A model from nothing would never earn a reward to learn from. So it is first taught by examples, a third of
whose digits are wrong: it knows what an answer looks like, is right on about half of the digits, and
leaves reinforcement learning something to do.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from digit_sort.reward import compute_score
from digit_sort.sizes import TINY, Size
from digit_sort.task import DIGITS, answer_of, draw_digits, prompt_of

PAD, END = "<|endoftext|>", "<|im_end|>"
# The prompt is the message and nothing else: nothing to learn but the task. END closes what the model said.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + END + "{% endif %}{% endfor %}"
)
MAX_ANSWER = DIGITS + 2  # room for an answer that is too long

WARM_UP_BATCH = 128
WARM_UP_NOISE = 0.35  # share of digits in the examples that are drawn at random


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer without merges: one byte, one token.

    transformers 5 builds the tokenizer of a Qwen2 model anew from vocabulary and merges and ignores any
    other pre-tokenizer and decoder in the file. So this is made with its own class, and what is loaded
    equals what was saved.
    """
    tokens = [PAD, END, *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int, size: Size = TINY) -> Qwen2ForCausalLM:
    """Return the untrained model; the weights depend on the seed alone."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _repeatable(seed):
        return Qwen2ForCausalLM(config)


def warm_up(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    report: Callable[[int, int], None] = lambda step, steps: None,
    size: Size = TINY,
) -> None:
    """Teach the model, on its device, by examples with wrong digits among them; ``report`` hears of each step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.warm_up_lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate(step, size.warm_up_steps)
    )
    model.train()
    with _repeatable(seed):
        for step in range(size.warm_up_steps):
            ids, labels = (one.to(model.device) for one in _examples(tokenizer, rng))
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            report(step + 1, size.warm_up_steps)
    model.eval()


@torch.no_grad()
def sampled_reward(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, digits: list[str], seed: int
) -> float:
    """Return the mean reward of one sampled answer (temperature 1) to each of the tasks."""
    ids = [tokenizer(prompt_of(one))["input_ids"] for one in digits]
    prompts = torch.tensor(ids, device=model.device)
    with _repeatable(seed):
        out = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            max_new_tokens=MAX_ANSWER,
        )
    answers = tokenizer.batch_decode(out[:, prompts.shape[1] :], skip_special_tokens=True)
    scores = [compute_score("", answer, answer_of(one)) for answer, one in zip(answers, digits, strict=True)]
    return sum(scores) / len(scores)


def build(
    folder: Path,
    seed: int,
    report: Callable[[int, int], None] = lambda step, steps: None,
    size: Size = TINY,
    device: str = "cpu",
) -> Qwen2ForCausalLM:
    """Make tokenizer and warmed-up model, save both in ``folder``, return the model, which is on the device."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed, size).to(device)
    warm_up(model, tokenizer, seed, report, size)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def _examples(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one batch; the prompt does not count in the loss (-100 is what transformers leaves out)."""
    texts = []
    for _ in range(WARM_UP_BATCH):
        digits = draw_digits(rng)
        noisy = [
            rng.choice("0123456789") if rng.random() < WARM_UP_NOISE else digit for digit in answer_of(digits)
        ]
        texts.append(prompt_of(digits) + "".join(noisy) + END)
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    labels = ids.clone()
    labels[:, : DIGITS + 1] = -100
    return ids, labels


def _learning_rate(step: int, steps: int) -> float:
    """Rise for 50 steps, fall to a tenth over all of them."""
    return min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed torch and use one thread: sums in another order would give other weights. Undone afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
