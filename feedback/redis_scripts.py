"""The scripts that run inside Redis or Valkey (Lua 5.1 with struct; 6.2 and newer).

Every check and read comes before the first write, and the first write is one that a full or read-only server refuses:
so each script happens whole or not at all. All keys of a call share one hash tag.
"""

from typing import Final

DECISIONS: Final = """
-- KEYS  beacons, then decisions      ARGV  worker or '' for no beacon, its sequence, ttl ms, then the decisions' records
local before = ARGV[1] ~= '' and redis.call('HGET', KEYS[1], ARGV[1]) or false
for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[3], 'NX') end
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return before
"""

FEEDBACK: Final = """
-- KEYS  decision, ratings, log, meta, marks of what the log was seeded with
-- ARGV  kind u8, slot (kind and source), key (8 bytes), value f64 or '' to withdraw, source, carried record or '', ttl ms,
--       most ratings, mark (16 bytes), accepted at f64
local function prefix_of(record)  -- nil unless its lengths fit (feedback.records)
  if #record < 64 then return nil end
  local version, _, length, d, arm = struct.unpack('<BBHHH', record)
  if version == 2 and length == 64 + arm + 2 * d and #record >= length then return string.sub(record, 1, length) end
end
local record = redis.call('GET', KEYS[1]) or ARGV[6]
local prefix = prefix_of(record)
local told = ARGV[6] == '' and prefix or ''  -- to a sender who has none

local same = redis.call('HGET', KEYS[2], 'k' .. ARGV[3])
  or redis.call('HGET', KEYS[5], 'k' .. string.sub(ARGV[9], 9))
if same == ARGV[4] then return {'duplicate', redis.call('HGET', KEYS[4], 'last') or '', told} end
if same then return {'conflict'} end
if record == '' then return {'unknown_decision'} end
if not prefix then return {'malformed'} end

if tonumber(redis.call('HGET', KEYS[2], 'n') or 0) >= tonumber(ARGV[8]) then return {'too_many'} end
local last = redis.call('HGET', KEYS[4], 'last')
if not last then return {'not_seeded'} end

-- held: when it was accepted, its value now (none: withdrawn), and the id of the entry that gave it first
local held = redis.call('HGET', KEYS[2], 's' .. ARGV[2])
  or redis.call('HGET', KEYS[5], 's' .. string.sub(ARGV[9], 1, 8))
if held and struct.unpack('<d', held) > struct.unpack('<d', ARGV[10]) then  -- a failover took it back, and not the later
  redis.call('HSET', KEYS[2], 'k' .. ARGV[3], ARGV[4])
  redis.call('HINCRBY', KEYS[2], 'n', 1)
  redis.call('PEXPIRE', KEYS[2], ARGV[7])
  return {'duplicate', last, told}
end
local there, withdrawn = held and #held > 8, ARGV[4] == ''
if withdrawn and not there then return {'nothing_given'} end
local zero = string.rep('\\0', 8)
local origin = there and string.sub(held, 17) or ''
local entry = ARGV[1] .. (withdrawn and '\\2' or there and '\\1' or '\\0') .. prefix
  .. (withdrawn and zero or ARGV[4]) .. (there and string.sub(held, 9, 16) or zero) .. origin .. '\\0' .. ARGV[5]
local mark = ARGV[9] .. ARGV[10] .. ARGV[4] .. (withdrawn and '' or origin)
local id = redis.call('XADD', KEYS[3], '*', 'p', last, 'e', entry, 'm', mark)
local token = id .. ':' .. string.sub(redis.sha1hex(last .. entry .. mark), 1, 16)
local now = ARGV[10] .. (withdrawn and '' or ARGV[4] .. (there and origin or id))
redis.call('HSET', KEYS[4], 'last', token)
redis.call('HSET', KEYS[2], 'k' .. ARGV[3], ARGV[4], 's' .. ARGV[2], now)
redis.call('HINCRBY', KEYS[2], 'n', 1)
redis.call('PEXPIRE', KEYS[2], ARGV[7])
local answer = withdrawn and 'withdrawn' or there and 'revised' or 'applied'
return {answer, token, told}
"""

APPEND: Final = """
-- KEYS  log, meta, once      ARGV  entry, key or '', ttl ms
local last = redis.call('HGET', KEYS[2], 'last')
if not last then return false end
local before = ARGV[2] ~= '' and redis.call('HGET', KEYS[3], ARGV[2])
if before then return before end
local id = redis.call('XADD', KEYS[1], '*', 'p', last, 'e', ARGV[1])
local token = id .. ':' .. string.sub(redis.sha1hex(last .. ARGV[1]), 1, 16)
redis.call('HSET', KEYS[2], 'last', token)
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[3], ARGV[2], token)
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
return token
"""

SEED: Final = """
-- KEYS  snapshot, log, meta, marks      ARGV  snapshot, token, token that the marks begin after, ttl ms, field, value, ...
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3]) > 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[4], 'since', ARGV[3])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[4], ARGV[4])
redis.call('HSET', KEYS[3], 'seed', ARGV[2], 'snapshot', ARGV[2], 'last', ARGV[2])
local id = string.match(ARGV[2], '^[^:]+')
if id ~= '0-0' then  -- ids go on from there, though this server's clock may be behind that of the one before
  redis.call('XADD', KEYS[2], id, 'p', '', 'e', '')
  redis.call('XDEL', KEYS[2], id)
end
return 1
"""

MARKS: Final = """
-- KEYS  marks, meta: both of one moment, and so of one history
return {redis.call('HGETALL', KEYS[1]), redis.call('HMGET', KEYS[2], 'seed', 'snapshot')}
"""

REPLACE: Final = """
-- KEYS  snapshot, log, meta, marks
-- ARGV  snapshot, token, the log's end as it was read, token that the marks begin after, ttl ms, field, value, ...
if redis.call('HGET', KEYS[3], 'last') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[4], 'since', ARGV[4])
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[4], ARGV[5])
redis.call('HSET', KEYS[3], 'seed', ARGV[2], 'snapshot', ARGV[2], 'last', ARGV[2])
local id = string.match(ARGV[2], '^[^:]+')
if id ~= '0-0' then
  redis.call('XADD', KEYS[2], id, 'p', '', 'e', '')
  redis.call('XDEL', KEYS[2], id)
end
return 1
"""

SNAPSHOT: Final = """
-- KEYS  snapshot, log, meta
-- ARGV  snapshot, its token, the token it replaces, trim entries before this id or '', digest of the state in it
local base = redis.call('HGET', KEYS[3], 'snapshot')
if base ~= ARGV[3] then return 0 end
local function order(token)
  local a, b = string.match(token, '^(%d+)-(%d+)')
  return tonumber(a), tonumber(b)
end
local a1, b1 = order(ARGV[2])
local a0, b0 = order(base)
if a1 < a0 or (a1 == a0 and b1 <= b0) then return 0 end
local id = string.match(ARGV[2], '^[^:]+')
local found = redis.call('XRANGE', KEYS[2], id, id)[1]
if not found then return 0 end
local fields = {}
for i = 1, #found[2], 2 do fields[found[2][i]] = found[2][i + 1] end
if id .. ':' .. string.sub(redis.sha1hex(fields['p'] .. fields['e'] .. (fields['m'] or '')), 1, 16) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[3], 'snapshot', ARGV[2], 'digest', ARGV[5])
if ARGV[4] ~= '' then redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[4]) end
return 1
"""
