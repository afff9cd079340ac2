"""Uploading a saved policy to the Hugging Face hub, when the script asks for it."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData

from rlhf_fast.export.card import CARD, code
from rlhf_fast.runtime.files import disk_errors, write_text
from rlhf_fast.trainer.config import PPOConfig


def push(
    args: PPOConfig, base: str, files: Iterable[str], *, commit_message: str, blocking: bool, token: str | None,
    revision: str | None, dataset_name: str | list[str] | None, tags: str | list[str] | None,
) -> Any:  # fmt: skip
    """Upload `files` of `args.output_dir`, by their names there, and a model card, and nothing else; returns the
    commit, or its future where not `blocking`."""
    folder = Path(str(args.output_dir))
    name = args.hub_model_id or folder.resolve().name
    write_card(folder, model_card(name, base, dataset_name, tags))
    api = HfApi(token=token or args.hub_token)
    repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    return api.upload_folder(  # type: ignore[call-overload]  # one overload for each value of run_as_future
        repo_id=repository, folder_path=folder, commit_message=commit_message,
        allow_patterns=[CARD, *map(glob.escape, files)], revision=revision or args.hub_revision,
        run_as_future=not blocking,
    )  # fmt: skip


def write_card(folder: Path, text: str) -> None:
    """Raises `UsageError` if the disk refuses."""
    with disk_errors(f"write {str(folder / CARD)!r}", "The model is as it was."):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CARD, text)


def model_card(name: str, base: str, dataset_name: str | list[str] | None, tags: str | list[str] | None) -> str:
    listed = [tags] if isinstance(tags, str) else list(tags or [])
    data = ModelCardData(base_model=base or None, datasets=dataset_name, tags=[*listed, "rlhf-fast", "ppo"])
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n\nTrained by PPO from {code(base)} with rlhf_fast.\n"
