"""What helps against an error of Redis, in words."""

from __future__ import annotations

import re

from tet_core.errors import FullError, RightsError, StoreError
from tet_core.stored import DEFAULT_PREFIX, Keys

#: The commands that the service uses, those inside of its scripts included.
COMMANDS = (
    "ping select get getrange pttl evalsha script|load type set del rename setrange pexpire publish info"
)
#: How Redis 6.2, 7 and Valkey say that a user lacks a right, inside of scripts too.
_NO_RIGHT = re.compile(r"no permissions|ACL failure|The user executing the script can't")
SCRIPTS_REMEDY = "this server runs no Lua scripts, by which all is written"
COMMANDS_REMEDY = f"this server lacks a command, or has it renamed; needed: {COMMANDS}"
CLUSTER_REMEDY = "this is a node of a cluster: set REDIS_MODE=cluster and REDIS_DB=0"
NO_MASTER_REMEDY = (
    "a part of the cluster has no master; it passes with the failover (a cluster needs REDIS_MODE=cluster)"
)
MAX_CLIENTS_REMEDY = "raise Redis' maxclients, or close what else is connected"
AUTHORITY_REMEDY = "name who signed its certificate in REDIS_ADDR: rediss://host?ssl_ca_certs=FILE"
NAME_REMEDY = "its certificate is for another name: use that name in REDIS_ADDR"
PLAIN_REMEDY = "it speaks no TLS: REDIS_ADDR must begin with redis://, not rediss://"
CLOSED_REMEDY = "does it speak TLS only (rediss:// in REDIS_ADDR), or is it no Redis?"
#: What helps against an error of Redis: the class of redis-py or Python, a part of the text, the remedy.
REMEDIES = (
    ("AuthenticationError", "Authentication required", "set REDIS_PASSWORD"),
    ("AuthenticationError", "without any password", "Redis has no password: leave REDIS_PASSWORD empty"),
    ("AuthenticationError", "", "check REDIS_USERNAME and REDIS_PASSWORD"),
    (
        "ResponseError",
        "unknown command 'SENTINEL'",
        "REDIS_ADDR must name sentinels with REDIS_MODE=sentinel",
    ),
    ("ResponseError", "unknown command 'SELECT'", "is this a sentinel? Then set REDIS_MODE=sentinel"),
    ("ResponseError", "unknown command 'EVALSHA'", SCRIPTS_REMEDY),
    ("ResponseError", "unknown command 'SCRIPT'", SCRIPTS_REMEDY),
    ("ResponseError", "nknown command", COMMANDS_REMEDY),  # as such, or by a script
    ("ResponseError", "nknown Redis command", COMMANDS_REMEDY),
    ("ResponseError", "SELECT is not allowed in cluster mode", CLUSTER_REMEDY),
    ("MovedError", "", CLUSTER_REMEDY),
    ("MasterDownError", "", "REDIS_ADDR names a replica that has lost its master, and must name the master"),
    ("MaxClientsError", "", MAX_CLIENTS_REMEDY),
    ("ConnectionError", "max number of clients", MAX_CLIENTS_REMEDY),
    ("ConnectionError", "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self", AUTHORITY_REMEDY),
    ("ConnectionError", "unable to get local issuer", AUTHORITY_REMEDY),
    ("ConnectionError", "has expired", "the server's certificate has expired: renew it"),
    ("ConnectionError", "not yet valid", "is the clock of this machine right?"),
    ("ConnectionError", "mismatch", NAME_REMEDY),
    ("ConnectionError", "is not valid for", NAME_REMEDY),
    ("ConnectionError", "WRONG_VERSION_NUMBER", PLAIN_REMEDY),
    ("ConnectionError", "RECORD_LAYER_FAILURE", PLAIN_REMEDY),
    (
        "ConnectionError",
        "protected mode",
        "set a password in Redis and REDIS_PASSWORD, or bind it to loopback",
    ),
    (
        "ConnectionError",
        "Connection reset by peer",
        "if it speaks TLS only, REDIS_ADDR must begin with rediss://",
    ),
    ("ConnectionError", "Connection closed by server", CLOSED_REMEDY),
    ("OutOfMemoryError", "", "raise Redis' maxmemory, or keep fewer days or pairs"),
    ("ReadOnlyError", "", "REDIS_ADDR must name the primary, not a replica"),
    ("BusyLoadingError", "", "Redis is still loading; it will pass"),
    ("ResponseError", "MISCONF", "Redis cannot save to its disk; see its log"),
    ("ResponseError", "out of range", "REDIS_DB names a database that this Redis does not have"),
    ("ResponseError", "WRONGTYPE", "rename or delete that key, or choose another REDIS_DB or REDIS_PREFIX"),
    ("MasterNotFoundError", "", "do the sentinels know it? (REDIS_ADDR, REDIS_SENTINEL_MASTER)"),
    ("ClusterDownError", "", NO_MASTER_REMEDY),
    ("SlotNotCoveredError", "", NO_MASTER_REMEDY),
    ("RedisClusterException", "mode is not enabled", "this is a single server: leave REDIS_MODE at single"),
    ("RedisClusterException", "cannot be connected", "is Redis running there? (REDIS_ADDR)"),
    ("ConnectionError", "", "is Redis running there? (REDIS_ADDR)"),
    ("TimeoutError", "", "is Redis running there, and with TLS if REDIS_ADDR has rediss://?"),
    ("OSError", "", "is Redis running there? (REDIS_ADDR)"),
)


def with_remedy(text: str, error: Exception) -> str:
    """The text, the error, and what helps against it where that is known."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    for kind, sign, remedy in REMEDIES:
        if kind in kinds and sign in str(error):
            return f"{text}: {error}; {remedy}"
    return f"{text}: {error}"


def rights_of(refusal: str, user: str | None, keys: Keys, key: str = "") -> str:
    """What Redis said when it refused for want of a right, which one, and how to give it.

    ``key`` is what was worked on. Redis names a command, and says of a key or channel only that it is one.
    """
    reason = re.sub(r"^ERR |^NOPERM | script: (\w{40}, )?on @user_script.*", "", refusal)
    command = re.search(r"run the '([^']+)' command", reason)
    pause = "" if keys.prefix == DEFAULT_PREFIX else f" ~{DEFAULT_PREFIX}:system:pause*"
    if command:
        missing = f"+{command[1]}"
    elif "channel" in reason:
        missing = f"&{keys.updates}"
    elif "access" in reason:
        missing = f"~{keys.prefix}:*" if key.startswith(f"{keys.prefix}:") else pause.strip()
        reason += f" ({key})"
    else:
        missing = "+publish" if not key else ""
    needed = " ".join(f"+{name}" for name in COMMANDS.split())
    remedy = f"ACL SETUSER {user or 'default'} {missing}; " if missing else ""
    return (
        f"Redis refuses: {reason}; {remedy}in all give this user ~{keys.prefix}:*{pause} &{keys.updates} "
        f"{needed}; with GROUP, SHARD or EGRESS +sadd +smembers +srem too, in a cluster +cluster|slots "
        "+command +asking"
    )


def as_store_error(error: Exception, user: str | None, keys: Keys, key: str) -> StoreError:
    """The error of ours for one of Redis, with what helps; ``key`` is what was worked on."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "NoPermissionError" in kinds or _NO_RIGHT.search(str(error)):
        return RightsError(rights_of(str(error), user, keys, key))
    return (FullError if "OutOfMemoryError" in kinds else StoreError)(with_remedy("Redis refuses", error))
