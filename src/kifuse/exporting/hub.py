"""An export on the Hugging Face Hub, or on whatever `HF_ENDPOINT` names."""

from __future__ import annotations

import re
from pathlib import Path

from kifuse.errors import RunError

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}\Z")
"""The form of a model's or repository's name on the hub."""


def check_repo(repo: str) -> None:
    """Refuse a text that is no name of a repository, before anything is written.

    Raises:
        RunError: It is no such name.
    """
    if not HUB_ID.match(repo):
        raise RunError(f"push_to_hub: found {repo!r}, expected a repository's name such as me/support-desk.")


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload an export in one commit.

    Args:
        folder: The export.
        repo: `owner/name`; made if it is not there.
        private: Whether a repository that is made is private.
        message: Message of the commit.

    Returns:
        The address of the commit.

    Raises:
        RunError: The hub cannot be reached, or refuses; the export stays where it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(library_name="kifuse")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=[".*"],
            # files that an earlier export had and this one does not have
            delete_patterns=["*.safetensors", "*.json", "*.jinja"],
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunError(
            f"push_to_hub: {repo}: {first} The export is in {folder}. Log in with 'hf auth login' or set "
            "HF_TOKEN, and try again."
        ) from error
    return str(done.commit_url)
