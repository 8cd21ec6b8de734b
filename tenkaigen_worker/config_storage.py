"""The section ``storage``: where finished files go."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from tenkaigen_worker.config_fields import BucketName, FilePath, Seconds, Section, Text, disagree, is_near

_EXAMPLE = "https://PROJECT.supabase.co"
_WRONG_KEY = "is a key for browsers, which may not write; the worker needs the project's secret key, sb_secret_..."


class LocalStorageSettings(Section):
    """Files in a folder, served by the API under ``/files``. ``public_url`` is where a browser finds that."""

    path: FilePath | None = None
    public_url: Text | None = None


class SupabaseStorageSettings(Section):
    """A bucket of a Supabase project, and a private one for what users upload.

    ``files_url`` is where a browser finds the API's ``/files``, which leads to the pictures of a private bucket.
    """

    url: Text | None = None
    secret_key: SecretStr | None = None
    bucket: BucketName = "generated-designs"
    public: bool = True
    uploads_bucket: BucketName = "generation-uploads"
    files_url: Text | None = None
    signed_url_seconds: Annotated[int, Field(ge=1, le=604_800)] = 300
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    connect_timeout_seconds: Seconds = 10
    timeout_seconds: Seconds = 120

    @field_validator("url")
    @classmethod
    def _keeps_the_key_secret(cls, url: str | None) -> str | None:
        if url is None:
            return None
        wanted = f"should be the URL of a Supabase project, such as {_EXAMPLE}"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError(wanted) from None
        if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(wanted)
        if parts.path.strip("/"):
            raise ValueError(f"should end with the host, as in {_EXAMPLE}: the path to storage is added to it")
        if parts.scheme == "http" and not is_near(host):
            raise ValueError("should begin with https://: over http the secret key could be read on the way")
        return url.rstrip("/")

    @field_validator("secret_key")
    @classmethod
    def _is_a_secret_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        text = key.get_secret_value().strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("should be the project's secret key, sb_secret_..., in one piece")
        if text.startswith("sb_publishable_") or _role_of(text) in ("anon", "authenticated"):
            raise ValueError(_WRONG_KEY)
        return SecretStr(text)

    @model_validator(mode="after")
    def _uploads_are_private(self) -> Self:
        if self.public and self.uploads_bucket == self.bucket:
            raise disagree(
                "should be another bucket than storage.supabase.bucket: that one is public, and uploads are not",
                "uploads_bucket",
                "bucket",
            )
        return self


class StorageSettings(Section):
    """Where finished files go."""

    kind: Literal["local", "supabase"] = "local"
    local: LocalStorageSettings = LocalStorageSettings()
    supabase: SupabaseStorageSettings = SupabaseStorageSettings()

    @property
    def needs_the_api(self) -> bool:
        """Whether the URLs of pictures lead to the API, at an address that no setting names."""
        if self.kind == "local":
            return self.local.public_url is None
        return not self.supabase.public and self.supabase.files_url is None

    @model_validator(mode="after")
    def _supabase_has_an_address(self) -> Self:
        if self.kind == "supabase" and self.supabase.url is None:
            raise disagree(f"is needed with storage.kind: supabase, such as {_EXAMPLE}", "supabase.url", "kind")
        return self


def _role_of(key: str) -> str | None:
    """The role that a legacy key, a JWT, says it has; nothing is verified."""
    try:
        _, payload, _ = key.split(".")
        role = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).get("role")
    except (ValueError, binascii.Error, AttributeError):
        return None
    return role if isinstance(role, str) else None
