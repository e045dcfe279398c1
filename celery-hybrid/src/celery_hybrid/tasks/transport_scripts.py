"""What the transport does inside Redis, where nothing can come between two steps.

A script runs alone, and its first write takes it past ``maxmemory``
(https://redis.io/docs/latest/develop/programmability/eval-intro/): a full server still hands out messages, and none
is lost half way. Times are the server's, so that the clocks of the workers do not count.

What is kept in ``unacked`` is what kombu's own restore reads: ``[message, exchange, routing key]``. The exchange is the
empty one and the routing key is the queue, so that any consumer, of stock kombu too, puts a message back to the very
queue it came from, without a binding table.
"""

from __future__ import annotations

TAKE = """
-- Moves messages from queues to unacked.
-- KEYS: unacked, its index, the list for what is no message, then the lists of all queues for each priority.
-- ARGV: how many at most; 1 when a queue goes last after it gave; a 1 for each queue that is acknowledged, else 0;
--       the name of each queue in JSON.
-- Returns number of the queue, delivery tag and text, one after the other; no tag: it was no message.
local wanted, rotate, acknowledged = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3]
local queues = #ARGV - 3
local order, now, taken, failed = {}, nil, {}, nil
for queue = 1, queues do order[queue] = queue end

local function tag_of(text)
    if string.byte(text, 1) ~= 123 or string.byte(text, -1) ~= 125 then return nil end
    local found, again
    for tag in string.gmatch(text, '"delivery_tag":%s*"([^"\\\\]+)"') do
        if found then again = true break end
        found = tag
    end
    if found and not again then return found end
    -- No tag in plain text, or a header that is called like it.
    local ok, message = pcall(cjson.decode, text)
    local properties = ok and type(message) == 'table' and message['properties']
    local tag = type(properties) == 'table' and properties['delivery_tag']
    if type(tag) == 'string' or type(tag) == 'number' then return tostring(tag) end
    return nil
end

local function take(queue, text)
    local name, tag = ARGV[3 + queue], tag_of(text)
    if not tag then
        redis.call('LPUSH', KEYS[3], name .. '\\nis no message of Celery: no delivery tag\\n' .. text)
    elseif string.sub(acknowledged, queue, queue) == '1' then
        if not now then
            local time = redis.call('TIME')
            now = time[1] .. '.' .. string.format('%06d', time[2])
        end
        local entry = '[' .. text .. ', "", ' .. name .. ']'
        -- A message that was sent twice, or to two queues, is two messages.
        if redis.call('HSETNX', KEYS[1], tag, entry) == 0 then
            tag = tag .. ':' .. now .. ':' .. #taken
            redis.call('HSET', KEYS[1], tag, entry)
        end
        redis.call('ZADD', KEYS[2], now, tag)
    end
    taken[#taken + 1] = queue
    taken[#taken + 1] = tag or ''
    taken[#taken + 1] = text
    wanted = wanted - 1
end

for first = 3, #KEYS - queues, queues do
    local empty, more = {}, true
    while more and wanted > 0 and not failed do
        more = false
        for place = 1, queues do
            local queue = order[place]
            if not empty[queue] then
                local text = redis.pcall('RPOP', KEYS[first + queue])
                if type(text) == 'table' then failed = text break end
                if text then
                    take(queue, text)
                    if rotate then table.insert(order, table.remove(order, place)) end
                    more = true
                    break
                end
                empty[queue] = true
            end
        end
    end
end
if #taken == 0 then
    if failed then return failed end
    -- A connection that tracks its keys hears of these when they change, because they were read here.
    redis.call('EXISTS', unpack(KEYS, 4))
end
return taken
"""

OVERDUE = """
-- Returns the latest time that is overdue, then tag and entry of each message that was taken before it.
-- KEYS: unacked, its index.  ARGV: visibility timeout in seconds, how many.
local time = redis.call('TIME')
local latest = string.format('%d.%06d', time[1] - ARGV[1], time[2])
local found = {latest}
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', latest, 'LIMIT', 0, ARGV[2])) do
    found[#found + 1] = tag
    found[#found + 1] = redis.call('HGET', KEYS[1], tag) or ''
end
return found
"""

MOVE = """
-- Moves a message from unacked to lists. Returns 0 when it is not there, or was taken again meanwhile.
-- KEYS: unacked, its index, the lists.  ARGV: tag, latest time it was taken, text, LPUSH or RPUSH.
if ARGV[2] ~= '' then
    local taken = redis.call('ZSCORE', KEYS[2], ARGV[1])
    if taken and tonumber(taken) > tonumber(ARGV[2]) then return 0 end
end
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
for list = 3, #KEYS do redis.call(ARGV[4], KEYS[list], ARGV[3]) end
return 1
"""
