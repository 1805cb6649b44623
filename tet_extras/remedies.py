"""What helps against an error of Redis, in words."""

from __future__ import annotations

#: The commands that the service uses, those inside of its script included.
COMMANDS = "ping select get getrange pttl evalsha script|load type set del rename setrange pexpire publish"
ACL_REMEDY = (
    f"give this user ~tet:* &tet:updates {' '.join(f'+{name}' for name in COMMANDS.split())}; "
    "with GROUP, SHARD or EGRESS +sadd +smembers +srem too, in a cluster +cluster|slots +command +asking"
)
#: What helps against an error of Redis: the class of redis-py or Python, a part of the text, the remedy.
REMEDIES = (
    ("AuthenticationError", "Authentication required", "set REDIS_PASSWORD"),
    ("AuthenticationError", "without any password", "Redis has no password: leave REDIS_PASSWORD empty"),
    ("AuthenticationError", "", "check REDIS_USERNAME and REDIS_PASSWORD"),
    ("NoPermissionError", "", ACL_REMEDY),
    ("ResponseError", "ACL failure", ACL_REMEDY),
    ("ResponseError", "unknown command", "this server runs no Lua scripts, by which all is written"),
    ("OutOfMemoryError", "", "raise Redis' maxmemory, or keep fewer days or pairs"),
    ("ReadOnlyError", "", "REDIS_ADDR must name the primary, not a replica"),
    ("BusyLoadingError", "", "Redis is still loading; it will pass"),
    ("ResponseError", "MISCONF", "Redis cannot save to its disk; see its log"),
    ("ResponseError", "out of range", "REDIS_DB names a database that this Redis does not have"),
    ("ResponseError", "WRONGTYPE", "rename or delete that key, or choose another REDIS_DB"),
    ("MasterNotFoundError", "", "do the sentinels know it? (REDIS_ADDR, REDIS_SENTINEL_MASTER)"),
    ("ClusterDownError", "", "a part of the cluster has no master; it passes with the failover"),
    ("RedisClusterException", "mode is not enabled", "this is a single server: leave REDIS_MODE at single"),
    ("RedisClusterException", "cannot be connected", "is Redis running there? (REDIS_ADDR)"),
    ("ConnectionError", "", "is Redis running there? (REDIS_ADDR)"),
    ("TimeoutError", "", "is Redis running there? (REDIS_ADDR)"),
    ("OSError", "", "is Redis running there? (REDIS_ADDR)"),
)


def with_remedy(text: str, error: Exception) -> str:
    """The text, the error, and what helps against it where that is known."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    for kind, sign, remedy in REMEDIES:
        if kind in kinds and sign in str(error):
            return f"{text}: {error}; {remedy}"
    return f"{text}: {error}"
