"""The scripts that Redis runs: the one way by which anything is written, in one step.

No reader sees half of a write. A whole value is uploaded under a key of its own, and renamed by the script:
to pass it through Lua cost Redis five times as much. What changes at its end, and what leaves at its front,
is written in place. An announcement that is refused changes nothing of what is written: its error is the
second word of the answer.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

#: Writes a value whole, and its timestamp, unless what is there is newer. Newer is who has the later
#: data_end, among equals the later newest candle, among equals the later last_update. None of them goes back.
WRITE_SCRIPT = """
-- KEYS: the value's key; then the timestamp's, if both are on one server; then the upload's.
-- ARGV: 1 data_end and last_candle_time of the value offered; '' for a value without   2 its last_update
--       3 the latest last_update that is believed   4 the latest time of a candle that is believed
--       5 timeframe   6 the end of a value that is not sound, and gives way whatever its candles
--       7 expiry in ms   8 the timestamp   9 its expiry in ms   10 channel   11 announcement
local upload, found = table.remove(KEYS), nil
local function refuse(...)
  redis.call('DEL', upload)
  return {...}
end
for _, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'string' and kind ~= 'none' then return refuse('taken', key, kind) end
  found = found or kind
end
if ARGV[1] ~= '' then
  -- The end of a value of ours has its age. A damaged one may be written over.
  local tail = redis.call('GETRANGE', KEYS[1], -512, -1)
  local fields = string.sub(tail, string.find(tail, '"last_candle_time"', 1, true) or #tail)
  local newest, update, closed, frame = string.match(fields, '^"last_candle_time":"([^"]+)",' ..
    '"last_update":"([^"]+)","data_start":"[^"]+","data_end":"([^"]+)","data_completeness":[^,]+,' ..
    '"candle_count":%d+,"timeframe":"([^"]+)","data_age_seconds":%d+} *$')
  if frame == ARGV[5] then
    local held = closed .. newest
    if closed > ARGV[4] or newest > ARGV[4] or tail == ARGV[6] then held = '' end
    if update > ARGV[3] then update = '' end
    if held > ARGV[1] or held == ARGV[1] and update > ARGV[2] then return refuse('newer') end
    if update > ARGV[2] then return refuse('ahead', update) end
  end
end
if redis.call('TYPE', upload).ok == 'none' then return {'lost'} end
redis.call('RENAME', upload, KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
local answer = {found == 'none' and 'created' or 'written'}
if KEYS[2] then
  redis.call('SET', KEYS[2], ARGV[8], 'PX', ARGV[9])
  local heard = redis.pcall('PUBLISH', ARGV[10], ARGV[11])
  if type(heard) == 'table' and heard.err then table.insert(answer, heard.err) end
end
return answer
"""
#: Writes what has changed of a value, and its timestamp, if that is the value that the change is for: it has
#: the same at three places, of which the last one goes to its end; see `tet_core.stored.Patch`.
PATCH_SCRIPT = """
-- KEYS: the value's key; then the timestamp's, if both are on one server.
-- ARGV: 1 SHA-1 of the three places   2 SHA-1 of the whole value, '': that is not asked
--       3 numbers: from where to where candles leave; from where to where candles may have changed, and from
--         where on they have; where the fields begin, and from where on they have changed; how many blanks
--         follow the candles of a value laid out anew, -1: it is written in place; expiry in ms, that of the
--         timestamp
--       4 what candles have there   5 what the fields have   6 channel   7, 8 head and rest of what is told
local key, at = KEYS[1], {}
for number in string.gmatch(ARGV[3], '%S+') do table.insert(at, tonumber(number)) end
local leaving, kept, stale, stale_end, coming, fields, newer, blanks, expiry, stamp_expiry = unpack(at)
local function part(first, behind) return redis.call('GETRANGE', key, first, behind - 1) end
for _, each in ipairs(KEYS) do
  local kind = redis.call('TYPE', each).ok
  if kind ~= 'string' and kind ~= 'none' then return {'taken', each, kind} end
  if kind == 'none' and each == key then return {'gone'} end
end
if redis.sha1hex(part(leaving, kept) .. part(stale, stale_end) .. part(fields, 0)) ~= ARGV[1]
  or ARGV[2] ~= '' and redis.sha1hex(redis.call('GET', key)) ~= ARGV[2] then return {'whole'} end
local last = ARGV[5]
if blanks < 0 then
  if kept > leaving then redis.call('SETRANGE', key, leaving, string.rep(' ', kept - leaving)) end
  if ARGV[4] ~= '' then redis.call('SETRANGE', key, coming, ARGV[4]) end
  if last ~= '' then redis.call('SETRANGE', key, newer, last) end
  redis.call('PEXPIRE', key, expiry)
  last = part(fields, 0)
else
  local candles = '{"ohlcv_data":"{' .. part(kept, stale) .. ARGV[4]
  redis.call('SET', key, candles .. string.rep(' ', blanks) .. last, 'PX', expiry)
end
local answer = {'written'}
if KEYS[2] then
  redis.call('SET', KEYS[2], string.match(last, '"last_update":"([^"]+)"'), 'PX', stamp_expiry)
  local heard = redis.pcall('PUBLISH', ARGV[6], ARGV[7] .. string.match(last, '^",%s*(.*)} *$') .. ARGV[8])
  if type(heard) == 'table' and heard.err then table.insert(answer, heard.err) end
end
return answer
"""
#: The end of a value, with blanks that stand together as one.
LOOK_SCRIPT = """
-- KEYS: the value's. ARGV: 1 how many bytes
local length, far, text = tonumber(ARGV[1]), tonumber(ARGV[1]), nil
repeat
  far = far * 4
  local found = redis.call('GETRANGE', KEYS[1], -far, -1)
  text = string.gsub(found, ' +', ' ')
until #text >= length or #found < far
return string.sub(text, -length)
"""
#: In a cluster a pair's keys are on different nodes: once its value is written, this writes the timestamp.
STAMP_SCRIPT = """
-- KEYS: the timestamp's. ARGV: 1 it   2 the latest that is believed   3 its expiry in ms
--       4 channel   5 announcement
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then return {'taken', KEYS[1], kind} end
local held = redis.call('GET', KEYS[1])
if held and held > ARGV[1] and held <= ARGV[2] then return {'newer'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
local heard = redis.pcall('PUBLISH', ARGV[4], ARGV[5])
if type(heard) == 'table' and heard.err then return {'written', heard.err} end
return {'written'}
"""
#: Says what the values are made of, and by whom, unless somebody says otherwise.
CLAIM_SCRIPT = """
-- KEYS: the claim. ARGV: 1 how it begins: what the values are made of   2 how it goes on: by whom
--       3 expiry in ms, 0: only look, -1: give it up if it is still one's own
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then return {'taken', KEYS[1], kind} end
local held, expiry = redis.call('GET', KEYS[1]) or '', tonumber(ARGV[3])
local alike = string.sub(held, 1, #ARGV[1]) == ARGV[1]
if not alike and string.sub(held, 1, 10) == '{"values":' then
  return {'differs', held, tostring(redis.call('PTTL', KEYS[1]))}
end
if expiry > 0 then
  redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', expiry)
elseif expiry < 0 and held == ARGV[1] .. ARGV[2] then
  redis.call('DEL', KEYS[1])
end
return {'alike', held}
"""
#: How a member of several says that it is there, and who else is.
MEMBER_SCRIPT = """
-- KEYS: the set of members' ids; the member's own. ARGV: 1 its id   2 its entry   3 expiry in ms
local had = redis.call('GET', KEYS[2])  -- SET with GET is of Redis 6.2
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
local found = {had and 'renewed' or 'joined'}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local entry = redis.call('GET', KEYS[1] .. ':' .. id)
  if entry then
    table.insert(found, id)
    table.insert(found, entry)
  else
    redis.call('SREM', KEYS[1], id)
  end
end
return found
"""


@lru_cache(maxsize=8)
def sha_of(script: str) -> str:
    """The name by which Redis knows a script."""
    return sha1_of(script.encode())


def sha1_of(text: bytes) -> str:
    """A digest as Redis works it out, of what nobody forges: other values have others."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()
