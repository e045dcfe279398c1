"""What is done with a chord inside Redis, where nothing can come between two steps.

A script runs alone. Its first write may not grow anything, even where it changes nothing, so that Redis lets it pass
at ``maxmemory`` (https://redis.io/docs/latest/develop/programmability/eval-intro/); and it raises for a key of a wrong
type before anything has been written. There is no shebang: with one, a full server refuses the script itself. Times
are the server's.

Fields of a chord's hash (``celery.chord.<group id>``):

==============  ====================================================================================================
``size``        number of tasks in the header
``shape``       the header's results as a tuple in JSON, when some of them are groups; else empty
``growth``      tasks that were added while it ran; ``g:<task id>`` for each of them
``n``, ``bytes``  parts that are counted, and the bytes of their values
``p:<task id>``  the end of a task, see :class:`celery_hybrid.broker.chord_counter.Part`
``body``        the signature to send, once
``origin``      of the task that was counted last: what the body inherits from it
``since``       when the first part was counted
``full``        when the last part was
``by``          who is finishing it
``tries``       how often that was tried
``swept``       how often a task was sent to finish it since the last try
``done``        the body has been sent; then there is no other field
==============  ====================================================================================================
"""

from __future__ import annotations

_COMPLETE = """
local function complete(size, growth, n)
    return size and n and tonumber(n) > 0 and tonumber(n) >= tonumber(size) + tonumber(growth or 0)
end
local function now()
    local time = redis.call('TIME')
    return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function text(number) return string.format('%.6f', number) end
"""

PART = (
    _COMPLETE
    + """
-- Counts the end of a task of a chord's header.
-- KEYS: the chord, the ready ones, the open ones.
-- ARGV: id of the group, of the task; the part; what the body inherits; seconds that the chord is kept without news,
--       and further ones until it is deleted; seconds that a process may take to finish it; a token of this call; most
--       bytes of all parts, empty for any; 1 to begin a chord that is not there; the body, empty when it is not sent.
-- Returns gone, done, body (nothing was counted: send the body as well), by_id (nothing was counted: too many bytes),
--         more, or complete: the one who hears that finishes the chord.
local group, task, part, origin, token = ARGV[1], 'p:' .. ARGV[2], ARGV[3], ARGV[4], ARGV[8]
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
redis.call('ZREM', KEYS[3], '')
local known = redis.call('HMGET', KEYS[1], 'done', 'size', 'growth', 'n', 'bytes', 'body', task, 'since', 'by', 'full')
if known[1] then return 'done' end
if ARGV[10] ~= '1' and redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
local n, bytes = tonumber(known[4] or 0), tonumber(known[5] or 0)
local at = now()
if not known[7] then
    if not known[6] and ARGV[11] == '' then return 'body' end
    if ARGV[9] ~= '' and bytes + #part > tonumber(ARGV[9]) then return 'by_id' end
    n = n + 1
    redis.call('HSET', KEYS[1], task, part, 'n', n, 'bytes', bytes + #part, 'origin', origin,
        'since', known[8] or text(at), 'body', known[6] or ARGV[11])
    redis.call('ZADD', KEYS[3], text(at + tonumber(ARGV[5])), group)
end
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[5]) + tonumber(ARGV[6]))
if not complete(known[2], known[3], n) then return 'more' end
local begun = redis.call('ZSCORE', KEYS[2], group)
if begun and known[9] ~= token and tonumber(begun) > at - tonumber(ARGV[7]) then return 'more' end
redis.call('ZADD', KEYS[2], text(at), group)
redis.call('HSET', KEYS[1], 'by', token, 'full', known[10] or text(at))
return 'complete'
"""
)

GROW = """
-- Lets a chord have a task more. Returns gone, done or more.
-- KEYS: the chord.  ARGV: id of the task, seconds that the chord is kept for, 1 to begin a chord that is not there.
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], 'done') == 1 then return 'done' end
if ARGV[3] ~= '1' and redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HSETNX', KEYS[1], 'g:' .. ARGV[1], '') == 1 then redis.call('HINCRBY', KEYS[1], 'growth', 1) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 'more'
"""

ADOPT = (
    _COMPLETE
    + """
-- Writes a field of a chord that another version has begun, unless it has it. Returns done, more or complete.
-- KEYS: the chord, the ready ones.  ARGV: id of the group, the field, its value, seconds that the chord is kept for.
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
if redis.call('HEXISTS', KEYS[1], 'done') == 1 then return 'done' end
redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
local known = redis.call('HMGET', KEYS[1], 'size', 'growth', 'n')
if not complete(known[1], known[2], known[3]) then return 'more' end
local at = text(now())
redis.call('HSETNX', KEYS[1], 'full', at)
return redis.call('ZADD', KEYS[2], 'NX', at, ARGV[1]) == 1 and 'complete' or 'more'
"""
)

STATE = (
    _COMPLETE
    + """
-- Returns what has become of a task's part: gone, done, uncounted, counted, or complete (counted, body not sent yet);
-- and the part.
-- KEYS: the chord.  ARGV: id of the task.
local known = redis.call('HMGET', KEYS[1], 'done', 'size', 'growth', 'n', 'p:' .. ARGV[1])
if known[1] then return {'done', ''} end
if known[5] then return {complete(known[2], known[3], known[4]) and 'complete' or 'counted', known[5]} end
return {redis.call('EXISTS', KEYS[1]) == 0 and 'gone' or 'uncounted', ''}
"""
)

LOAD = (
    _COMPLETE
    + """
-- Returns what there is to finish: complete, over (nothing was heard of it for too long), open, done or gone; how often
-- that was asked; the seconds since it was complete; and the fields of the chord with their values.
-- KEYS: the chord, the ready ones, the open ones.  ARGV: id of the group.
redis.call('HDEL', KEYS[1], 'swept')
redis.call('ZREM', KEYS[2], '')
redis.call('ZREM', KEYS[3], '')
local known = redis.call('HMGET', KEYS[1], 'done', 'size', 'growth', 'n', 'full')
local ended = known[1] and 'done' or redis.call('EXISTS', KEYS[1]) == 0 and 'gone'
if ended then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('ZREM', KEYS[3], ARGV[1])
    return {ended, 0, '0', {}}
end
local at, state = now(), 'complete'
if not complete(known[2], known[3], known[4]) then
    local over = redis.call('ZSCORE', KEYS[3], ARGV[1])
    if not over or tonumber(over) > at then
        redis.call('ZREM', KEYS[2], ARGV[1])
        return {'open', 0, '0', {}}
    end
    state = 'over'
end
local tries = redis.call('HINCRBY', KEYS[1], 'tries', 1)
return {state, tries, text(at - tonumber(known[5] or at)), redis.call('HGETALL', KEYS[1])}
"""
)

EXCUSE = """
-- Takes back an attempt to finish a chord.
-- KEYS: the chord.
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], 'tries') == 1 then redis.call('HINCRBY', KEYS[1], 'tries', -1) end
"""

FINISH = """
-- Sends the body of a chord and marks the chord as done, in one step. Returns 1, or 0 when it was done or is gone.
-- KEYS: the chord, the ready ones, the open ones, then those that the commands write.
-- ARGV: id of the group; seconds to remember that it is done; for each command its name, the number of its key, the
--       number of its further arguments, and these.
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], 'done') == 1 or redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('ZREM', KEYS[3], ARGV[1])
    return 0
end
local kinds = {LPUSH = 'list', HSET = 'hash'}
local place, commands = 3, {}
while place <= #ARGV do
    local name, key, count = ARGV[place], KEYS[tonumber(ARGV[place + 1])], tonumber(ARGV[place + 2])
    local command = {name, key}
    for argument = place + 3, place + 2 + count do command[#command + 1] = ARGV[argument] end
    local kind = redis.call('TYPE', key)['ok']
    if kinds[name] and kind ~= 'none' and kind ~= kinds[name] then
        return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. kind .. ', not a ' .. kinds[name])
    end
    commands[#commands + 1] = command
    place = place + 3 + count
end
for _, command in ipairs(commands) do redis.call(unpack(command)) end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'done', 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""

SWEEP = (
    _COMPLETE
    + """
-- Returns the ids of chords that no process is finishing although they are complete, or given up.
-- KEYS: the ready ones, the open ones.
-- ARGV: seconds that a process may take to finish one, how many at most, what the keys of chords begin with.
redis.call('ZREM', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
local at, lease = now(), tonumber(ARGV[1])
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(at - lease), 'LIMIT', 0, ARGV[2])
for _, group in ipairs(found) do
    -- Later each time, as long as no worker takes the task that was sent for it: its queue may have no consumer.
    local key, swept = ARGV[3] .. group, 1
    if redis.pcall('EXISTS', key) == 1 then swept = redis.pcall('HINCRBY', key, 'swept', 1) end
    swept = type(swept) == 'number' and math.min(swept, 8) or 1
    redis.call('ZADD', KEYS[1], text(at + lease * (2 ^ (swept - 1) - 1)), group)
end
for _, group in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(at), 'LIMIT', 0, ARGV[2])) do
    if redis.call('ZADD', KEYS[1], 'NX', text(at), group) == 1 then found[#found + 1] = group end
end
return found
"""
)
