"""The scripts behind feedback.budget, for Redis or Valkey (Lua 5.1; 6.2 and newer); all keys are in the tenant's own slot.

    account  hash   spent, held                        leases    hash  replica -> what is left of its lease
    expiries zset   replica -> when its lease returns (the server's own milliseconds)
    marks    string, one for each settled decision

As in feedback.redis_scripts every script happens whole or not at all: the first write is one that a full or read-only
server refuses.
"""

from typing import Final

LEASE: Final = """
-- KEYS  account, leases, expiries      ARGV  replica, chunk, limit, lease ms, keys live ms
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 64)) do
  local left = redis.call('HGET', KEYS[2], other)
  if left then redis.call('HINCRBY', KEYS[1], 'held', string.format('%.0f', 0 - left)) end
  redis.call('HDEL', KEYS[2], other)
  redis.call('ZREM', KEYS[3], other)
end
local spent = tonumber(redis.call('HGET', KEYS[1], 'spent') or 0)
local held = tonumber(redis.call('HGET', KEYS[1], 'held') or 0)
local lease = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0)
local more = math.min(tonumber(ARGV[2]) - lease, tonumber(ARGV[3]) - spent - held)
if more > 0 then
  redis.call('HINCRBY', KEYS[1], 'held', string.format('%.0f', more))
  redis.call('HINCRBY', KEYS[2], ARGV[1], string.format('%.0f', more))
  held, lease = held + more, lease + more
end
redis.call('ZADD', KEYS[3], now + ARGV[4], ARGV[1])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
return {string.format('%.0f', spent), string.format('%.0f', held), string.format('%.0f', lease)}
"""

SETTLE: Final = """
-- KEYS  account, leases, then one mark for each decision      ARGV  replica, marks live ms, keys live ms, cost, cost, ...
local charged = 0
for i = 3, #KEYS do
  if redis.call('SET', KEYS[i], ARGV[i + 1], 'NX', 'PX', ARGV[2]) then charged = charged + tonumber(ARGV[i + 1]) end
end
if charged == 0 then return '0' end
redis.call('HINCRBY', KEYS[1], 'spent', string.format('%.0f', charged))
local used = math.min(charged, tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0))
if used > 0 then
  redis.call('HINCRBY', KEYS[2], ARGV[1], string.format('-%.0f', used))
  redis.call('HINCRBY', KEYS[1], 'held', string.format('-%.0f', used))
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return string.format('%.0f', charged)
"""

GIVE_BACK: Final = """
-- KEYS  account, leases, expiries      ARGV  replica
local left = redis.call('HGET', KEYS[2], ARGV[1])
if left then redis.call('HINCRBY', KEYS[1], 'held', string.format('%.0f', 0 - left)) end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
"""
