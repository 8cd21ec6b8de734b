"""The section ``api``: where it listens, and whom it asks who they are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from tenkaigen_worker.config_fields import PROJECT_EXAMPLE, Origin, Port, ProjectUrl, Section, Text, disagree

# HS256 with less could be guessed from one token (RFC 7518, section 3.2).
SHORTEST_SECRET_BYTES = 32


def _listed(value: Any) -> Any:
    """One word may stand without a list."""
    return (value,) if isinstance(value, str) else value


Auth = Annotated[
    tuple[Literal["none", "supabase", "api_keys"], ...], Field(strict=False, min_length=1), BeforeValidator(_listed)
]


class SupabaseAuthSettings(Section):
    """Whose tokens are taken. ``jwt_secret`` is only for projects that sign with HS256; ``anonymous`` sign-ins."""

    url: ProjectUrl | None = None
    jwt_secret: SecretStr | None = None
    anonymous: bool = False

    @field_validator("jwt_secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < SHORTEST_SECRET_BYTES:
            raise ValueError(f"should be the project's JWT secret, of at least {SHORTEST_SECRET_BYTES} bytes")
        return secret


class ApiSettings(Section):
    """The front door. It speaks to this machine only, unless ``allow_remote`` or ``auth`` says otherwise."""

    host: Text = "127.0.0.1"
    port: Port = 8000
    auth: Auth = ("none",)
    supabase: SupabaseAuthSettings = SupabaseAuthSettings()
    cors_origins: Annotated[tuple[Origin, ...], Field(strict=False)] = ()
    allow_remote: bool = False
    allowed_hosts: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_048_576

    @property
    def asks_nobody(self) -> bool:
        """Whether everybody who gets through may do everything."""
        return "none" in self.auth

    @model_validator(mode="after")
    def _ways_in(self) -> Self:
        if self.asks_nobody and len(self.auth) > 1:
            raise disagree("none stands alone: it would make every other way in pointless", "auth")
        if "supabase" in self.auth and self.supabase.url is None:
            raise disagree(
                f"is missing; with supabase in api.auth it should be your project's URL, such as {PROJECT_EXAMPLE}",
                "supabase.url",
                "auth",
            )
        return self
