"""What the transport does inside Redis, where nothing can come between two steps.

A script runs alone, and its first write decides whether it may go on past ``maxmemory``
(https://redis.io/docs/latest/develop/programmability/eval-intro/), so that one is always a command that frees memory,
if need be one without effect: a full server still hands out messages, renews claims and takes messages back. For the
same reason the scripts have no shebang line: with one, Redis refuses them before they start. Times are the server's,
so that the clocks of the workers do not count.

No failure of a command in the middle loses a message, be it a key of the wrong type or a missing right: what can fail
is called with ``pcall`` and undone, and where a message moves, it is written before it is removed.

A **claim** is the field of ``unacked`` and the member of its index that a take writes. Its name belongs to that take
alone: ``<delivery tag>:<incarnation>.<take>.<place>`` (:mod:`celery_hybrid.broker.claims`). So a worker that renews,
acknowledges or puts back by name acts on a claim of their own or on none, and never on that of the worker that has got
the message since. What is kept there is what kombu's own restore reads: ``[message, exchange, routing key]``. The
exchange is the empty one and the routing key is the queue, so that any consumer, of stock kombu too, puts a message
back to the very queue it came from, without a binding table.
"""

from __future__ import annotations

TAKE = """
-- Moves messages from queues to unacked.
-- KEYS: unacked, its index, the list for what is not a message, the number of the last run, the list where the watch of
--       these queues is handed over, who has it, then the lists of all queues for each priority.
-- ARGV: how many at most; 1 when a queue goes last after it gave; a 1 for each queue that is acknowledged, else 0;
--       the claim; 'give' the watch when something is found, 'ask' for it when not, 'oust' who has it, or nothing;
--       who asks; seconds that the watch is kept for who has it; the name of each queue in JSON.
-- Returns the number of the first run (the next one's is greater by one, and so on), 1 when there are more messages,
-- then for each message the number of its queue, the name of its claim and its text; no name: it is not a message.
-- Without messages it returns 1 when who asks has the watch now, or still, else nothing.
local wanted, rotate, acknowledged, watch = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3], ARGV[5]
local queues = #ARGV - 7
local order, run, now, taken, failure = {}, nil, nil, {}, nil
for queue = 1, queues do order[queue] = queue end

local function failed(reply, key)
    if type(reply) ~= 'table' or not reply.err then return false end
    failure = failure or {err = reply.err .. " (key '" .. key .. "')"}
    return true
end

local function tag_of(text)
    if string.byte(text, 1) ~= 123 or string.byte(text, -1) ~= 125 then return nil end
    -- kombu writes it last, and what is before it can be large.
    local pattern = '"delivery_tag":%s*"([^"\\\\]+)"'
    local tag = string.match(string.sub(text, -1024), '.*' .. pattern)
    if tag then return tag end
    local place = string.find(text, '"delivery_tag":', 1, true)
    tag = place and string.match(text, '^' .. pattern, place)
    if tag then return tag end
    local ok, message = pcall(cjson.decode, text)
    local properties = ok and type(message) == 'table' and message['properties']
    tag = type(properties) == 'table' and properties['delivery_tag']
    if type(tag) == 'string' or type(tag) == 'number' then return tostring(tag) end
    return nil
end

local function begin()
    local time = redis.pcall('TIME')
    if failed(time, 'TIME') then return false end
    now = time[1] .. '.' .. string.format('%06d', time[2])
    -- Numbers of runs only grow, whatever the clock does, and also when Redis has lost the last one.
    run = time[1] * 1000000 + time[2]
    local last = redis.pcall('SET', KEYS[4], string.format('%.0f', run + wanted - 1), 'GET')
    last = type(last) == 'string' and tonumber(last)
    if last and last >= run and last < 2^52 then
        run = last + 1
        redis.pcall('SET', KEYS[4], string.format('%.0f', run + wanted - 1))
    end
    return true
end

local function claim(queue, tag, text)
    local name = tag .. ':' .. ARGV[4] .. '.' .. (#taken / 3)
    if string.sub(acknowledged, queue, queue) ~= '1' then return name end
    if failed(redis.pcall('ZADD', KEYS[2], now, name), KEYS[2]) then return nil end
    if failed(redis.pcall('HSET', KEYS[1], name, '[' .. text .. ', "", ' .. ARGV[7 + queue] .. ']'), KEYS[1]) then
        redis.pcall('ZREM', KEYS[2], name)
        return nil
    end
    return name
end

local function take(queue, text)
    if not run and not begin() then return false end
    local tag, name = tag_of(text), nil
    if tag then
        name = claim(queue, tag, text)
    else
        local element = ARGV[7 + queue] .. '\\nis not a Celery message: it has no delivery tag\\n' .. text
        name = not failed(redis.pcall('LPUSH', KEYS[3], element), KEYS[3]) and ''
    end
    if not name then return false end
    taken[#taken + 1] = queue
    taken[#taken + 1] = name
    taken[#taken + 1] = text
    wanted = wanted - 1
    return true
end

local function pop(list, queue)
    local text = redis.pcall('RPOP', list)
    -- A list that fails does not keep back the others.
    if failed(text, list) or not text then return false end
    if take(queue, text) then return true end
    if failed(redis.pcall('RPUSH', list, text), list) then redis.pcall('LPUSH', list, text) end
    wanted = 0
    return false
end

local function ousted()
    local watcher = redis.pcall('GET', KEYS[6])
    return type(watcher) == 'string' and watcher ~= ARGV[6]
end

for first = 6, #KEYS - queues, queues do
    local empty, more = {}, true
    while more and wanted > 0 do
        more = false
        for place = 1, queues do
            local queue = order[place]
            if wanted > 0 and not empty[queue] then
                if pop(KEYS[first + queue], queue) then
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
    if failure then return failure end
    if watch == 'give' then return ousted() and {} or {1} end
    if watch == '' then return {} end
    if type(redis.pcall('RPOP', KEYS[5])) == 'string' then return {1} end
    if watch == 'oust' then redis.pcall('DEL', KEYS[6]) end
    local set = redis.pcall('SET', KEYS[6], ARGV[6], 'NX', 'EX', ARGV[7])
    if type(set) == 'table' and set.ok or redis.pcall('GET', KEYS[6]) == ARGV[6] then return {1} end
    return {}
end
if watch == 'give' and not ousted() then redis.pcall('LPUSH', KEYS[5], '1') end
local more = wanted == 0 and not failure and redis.pcall('EXISTS', unpack(KEYS, 7))
return {run, type(more) == 'number' and more or 0, unpack(taken)}
"""

RENEW = """
-- Makes claims as young as new ones.
-- KEYS: unacked, its index.  ARGV: names of claims, 1000 at most.  Returns the names of those that are lost.
redis.call('ZREM', KEYS[2], '')
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local claims, lost = {}, {}
for _, name in ipairs(ARGV) do
    claims[#claims + 1] = now
    claims[#claims + 1] = name
end
if redis.call('ZADD', KEYS[2], 'XX', 'CH', unpack(claims)) == #ARGV then return lost end
for place, score in ipairs(redis.call('ZMSCORE', KEYS[2], unpack(ARGV))) do
    if not score then
        local name = ARGV[place]
        if redis.call('HEXISTS', KEYS[1], name) == 1 then
            redis.call('ZADD', KEYS[2], now, name)
        else
            lost[#lost + 1] = name
        end
    end
end
return lost
"""

OVERDUE = """
-- Returns name and score of claims that are older than the visibility timeout, the oldest first.
-- KEYS: the index of unacked.  ARGV: visibility timeout in seconds, how many to leave out, how many at most.
local time = redis.call('TIME')
local latest = string.format('%d.%06d', time[1] - ARGV[1], time[2])
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', latest, 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
"""

MOVE = """
-- Moves messages from unacked to lists.
-- KEYS: unacked, its index, the lists.
-- ARGV: LPUSH or RPUSH; then for each message the name of its claim, the score that it must have or nothing, the text,
--       and the numbers of its lists.
-- Returns for each 1 when it was moved, 0 when the claim is lost or was renewed, else the error.
redis.call('ZREM', KEYS[2], '')

local function err(reply)
    return type(reply) == 'table' and reply.err
end

local function undo(lists, count, text)
    for place = 1, count do redis.pcall('LREM', KEYS[2 + lists[place]], ARGV[1] == 'LPUSH' and 1 or -1, text) end
end

local function move(name, expected, text, lists)
    if expected ~= '' then
        local score = redis.call('ZSCORE', KEYS[2], name)
        if score and tonumber(score) ~= tonumber(expected) then return 0 end
    end
    if redis.call('HEXISTS', KEYS[1], name) == 0 then
        redis.call('ZREM', KEYS[2], name)
        return 0
    end
    for place, list in ipairs(lists) do
        local failure = err(redis.pcall(ARGV[1], KEYS[2 + list], text))
        if failure then
            undo(lists, place - 1, text)
            return failure .. " (key '" .. KEYS[2 + list] .. "')"
        end
    end
    local failure = err(redis.pcall('HDEL', KEYS[1], name))
    if failure then
        undo(lists, #lists, text)
        return failure .. " (key '" .. KEYS[1] .. "')"
    end
    redis.pcall('ZREM', KEYS[2], name)
    return 1
end

local moved = {}
for first = 2, #ARGV, 4 do
    local lists = {}
    for list in string.gmatch(ARGV[first + 3], '%d+') do lists[#lists + 1] = tonumber(list) end
    moved[#moved + 1] = move(ARGV[first], ARGV[first + 1], ARGV[first + 2], lists)
end
return moved
"""
