"""The command line of the run, and the environment it runs in."""

import sys
from math import ceil
from pathlib import Path

from digit_sort import task
from digit_sort.model import MAX_ANSWER
from digit_sort.where import CPU, Setup

BATCH = 128  # answers per step
FP32 = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
VLLM = ("gpu_memory_utilization=0.2", "enforce_eager=True")  # a small model, and no time to compile it
REWARD_FILE = Path(__file__).with_name("reward.py")


def taken_out(setup: Setup) -> tuple[str, ...]:
    """Return what the run shall not have of the caller's environment.

    An address would lead to another Ray cluster. On the CPU, a list of visible GPUs would take Ray its one "GPU".
    """
    return ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS") if setup.device == "cpu" else ("RAY_ADDRESS",)


def training_command(
    estimator: str,
    steps: int,
    seed: int,
    answers: int,
    model: Path,
    data: tuple[Path, Path],
    out: Path,
    setup: Setup = CPU,
) -> list[str]:
    """Return verl's own command line for this task; hydra overrides appended to it win."""
    prompts = BATCH // answers
    algorithm = [
        f"algorithm.adv_estimator={estimator}",
        # The penalty for leaving the reference model is part of the reward, as REINFORCE++ has it.
        "algorithm.use_kl_in_reward=True",
        "algorithm.kl_ctrl.kl_coef=0.01",
    ]
    rows = [
        f"data.train_files={_quoted(data[0])}",
        f"data.val_files={_quoted(data[1])}",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={task.DIGITS + 1}",
        f"data.max_response_length={MAX_ANSWER}",
        f"data.seed={seed}",
        "data.dataloader_num_workers=0",
    ]
    reward = [
        f"reward.custom_reward_function.path={_quoted(REWARD_FILE)}",
        "reward.custom_reward_function.name=compute_score",
        "reward.num_workers=1",
    ]
    trainer = [
        f"trainer.total_training_steps={steps}",
        f"trainer.total_epochs={ceil(steps * prompts / task.TRAIN_ROWS)}",
        "trainer.logger=[console,file]",
        "trainer.project_name=rl_estimators",
        "trainer.experiment_name=digit_sort",
        f"trainer.default_local_dir={_quoted(out / 'checkpoints')}",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        f"hydra.run.dir={_quoted(out / 'hydra')}",
    ]
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *(algorithm + rows + reward + _networks(model, seed, answers, setup) + trainer + _machine(setup)),
    ]


def _networks(model: Path, seed: int, answers: int, setup: Setup) -> list[str]:
    """Return what concerns the models: the same small one as actor, reference and, if wanted, critic."""
    actor = "actor_rollout_ref.actor"
    rollout = "actor_rollout_ref.rollout"
    common = ["use_remove_padding=False", "enable_gradient_checkpointing=False"]
    # verl's default is flash attention, which needs a GPU and a package of its own.
    attention = "eager" if setup.device == "cpu" else "sdpa"
    return [
        f"actor_rollout_ref.model.path={_quoted(model)}",
        f"critic.model.path={_quoted(model)}",
        f"critic.model.tokenizer_path={_quoted(model)}",
        *(f"{role}.model.{one}" for role in ("actor_rollout_ref", "critic") for one in common),
        f"+actor_rollout_ref.model.override_config.attn_implementation={attention}",
        f"+critic.model.override_config.attn_implementation={attention}",
        # One update on the whole batch per step. The interpolation follows a batch size given later on.
        f"{actor}.ppo_mini_batch_size=${{data.train_batch_size}}",
        f"{actor}.ppo_micro_batch_size_per_gpu={BATCH}",
        f"{actor}.optim.lr={setup.size.lr}",
        f"{actor}.fsdp_config.seed={seed}",
        f"critic.ppo_micro_batch_size_per_gpu={BATCH}",
        f"critic.optim.lr={setup.size.critic_lr}",
        f"{rollout}.name={setup.engine}",
        f"{rollout}.n={answers}",
        f"{rollout}.seed={seed}",
        f"{rollout}.dtype={'float32' if setup.device == 'cpu' else 'bfloat16'}",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.max_num_seqs={BATCH}",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={BATCH}",
        f"{rollout}.agent.num_workers=1",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={BATCH}",
        *(f"{rollout}.{one}" for one in VLLM if setup.engine == "vllm"),
    ]


def _machine(setup: Setup) -> list[str]:
    """Return what makes verl content with one GPU, or with two processor cores and none."""
    # verl's default is bfloat16, which few processors compute with.
    on_cpu = [f"+actor_rollout_ref.{role}.fsdp_config.mixed_precision={FP32}" for role in ("actor", "ref")]
    on_cpu += [f"+critic.fsdp.mixed_precision={FP32}"]
    # Compiling takes longer than all the steps.
    compilers = [
        "actor_rollout_ref.actor.use_torch_compile",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile",
        "actor_rollout_ref.ref.use_torch_compile",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile",
        "critic.fsdp.use_torch_compile",
    ]
    return [
        *(on_cpu if setup.device == "cpu" else []),
        f"trainer.device={setup.device}",
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=1",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "critic.strategy=fsdp2",
        *(f"{one}=False" for one in compilers),
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "transfer_queue.backend.SimpleStorage.total_storage_size=10000",
        # Ray counts GPUs and CPUs as tickets: verl asks for one of the first, for a dozen of the second.
        "+ray_kwargs.ray_init.num_gpus=1",
        "ray_kwargs.ray_init.num_cpus=16",
        "+ray_kwargs.ray_init.address=local",
        "+ray_kwargs.ray_init.include_dashboard=False",
        "+ray_kwargs.ray_init.object_store_memory=200000000",
    ]


def _quoted(path: Path) -> str:
    """Return the path as hydra reads it whole, be there commas, brackets or quotes in it."""
    return "'" + str(path).replace("'", "\\'") + "'"


def training_environment(scratch: Path, ray: Path, metrics: Path, setup: Setup = CPU) -> dict[str, str]:
    """Return what the run has in its environment beyond the caller's: every place to write is in ``scratch``.

    The folders are made, as some of those who use them do not.
    """
    places = {
        "HOME": scratch / "home",
        "TMPDIR": scratch / "tmp",
        "XDG_CACHE_HOME": scratch / "cache",
        "HF_HOME": scratch / "cache" / "huggingface",
        "MPLCONFIGDIR": scratch / "cache" / "matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": scratch / "cache" / "inductor",
        "TRITON_CACHE_DIR": scratch / "cache" / "triton",
        "RAY_TMPDIR": ray,
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    known = {name: str(place) for name, place in places.items()} | {
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "HF_HUB_OFFLINE": "1",
        "HYDRA_FULL_ERROR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_prestart_worker_first_driver": "0",  # else Ray starts a worker for each of the CPU tickets
        "TOKENIZERS_PARALLELISM": "false",
        "TQ_NUM_THREADS": "1",
    }
    if setup.device == "cpu":
        # "cuda" is verl's name for the FSDP engine; nothing runs on a GPU
        return known | {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}
    return (
        known
        | {
            "VERL_PLATFORM": "nvidia",  # asked in a process that Ray lets see no GPU, verl would have to guess
            "GLOO_SOCKET_IFNAME": "lo",  # one training process talks to itself, on a machine without a network as well
            "NCCL_SOCKET_IFNAME": "lo",
        }
    )
