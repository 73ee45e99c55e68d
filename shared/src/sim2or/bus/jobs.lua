-- The lease queue. Every operation is one atomic script: call with ARGV = {operation, argument, …}.
--
--   job:<id>                   hash: question, state, owner, attempts, result, …
--   jobs:<stage>:<priority>    stream of {id}; an entry lives until its job leaves the queue
--   jobs:<stage>:delayed       sorted set: job id by the time [ms] its retry is due
--   jobs:<stage>:outstanding   set of jobs that are queued, delayed or running
--   jobs:<stage>:wake          list of tokens that wake waiting workers
--   jobs:<stage>:counts        hash: how often each kind of event happened
--   jobs:<stage>:quiet         hash: length of a lease [ms] to the time [ms] before which none of them can end
--   jobs:all, jobs:dead        sorted sets: job id by time [ms]
--   bus:epoch                  random name of this bus: a Redis that came back empty has another
--   events                     stream of what happened; nothing trims it but op.prune
--
-- The owner of a job is (worker, attempt); who is not the owner any more is fenced.
-- Keys are computed here, so this needs one Redis, not a cluster.

local GROUP = 'workers'
local PRIORITIES = {'high', 'normal', 'low'}
local RELEASED_IDLE_MS = 86400000
local MAX_DELAY_MS = 60000
local MAX_TOKENS = 64
local MAX_PENDING = 10000
local FIELDS = {'state', 'stage', 'priority', 'run_id', 'traceparent', 'owner', 'attempts', 'strikes', 'stream', 'entry',
  'cancel', 'again'}
local op = {}
local now, passes

local function now_ms()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end

local function key(id) return 'job:' .. id end

-- What is kept of a job, but for its texts, by name; what is not there is ''. The table follows what `set` writes.
local function load(id)
  local job, values = {id = id}, redis.call('HMGET', key(id), unpack(FIELDS))
  for index, name in ipairs(FIELDS) do job[name] = values[index] or '' end
  return job
end

local function set(job, ...)
  local pairs = {...}
  for index = 1, #pairs, 2 do job[pairs[index]] = tostring(pairs[index + 1]) end
  redis.call('HSET', key(job.id), ...)
end

-- A full Redis refuses a script's first write if that one takes memory, and no later one. What goes on with a job
-- or ends it must pass, for it makes room in the end; so its first write takes none.
local function despite_full_memory()
  if not passes then redis.call('ZREM', 'jobs:all', '') end
  passes = true
end

local function event(kind, job, detail)
  if job.stage ~= '' then redis.call('HINCRBY', 'jobs:' .. job.stage .. ':counts', kind, 1) end
  redis.call('XADD', 'events', '*', 'kind', kind, 'job_id', job.id, 'run_id', job.run_id, 'stage', job.stage,
    'worker', job.owner, 'attempt', tonumber(job.attempts) or 0, 'traceparent', job.traceparent, 'detail', detail or '{}')
end

-- facts: JSON list of {kind, detail as JSON}.
local function tell(job, facts)
  if facts == '[]' then return end
  for _, fact in ipairs(cjson.decode(facts)) do event(fact[1], job, fact[2]) end
end

local function wake(stage)
  local list = 'jobs:' .. stage .. ':wake'
  redis.call('LPUSH', list, '1')
  redis.call('LTRIM', list, 0, MAX_TOKENS - 1)
end

local function drop(stream, entry)
  if stream == '' or entry == '' then return end
  redis.pcall('XACK', stream, GROUP, entry)
  redis.call('XDEL', stream, entry)
end

local function enqueue(job)
  local stream = 'jobs:' .. job.stage .. ':' .. job.priority
  local entry = redis.call('XADD', stream, '*', 'id', job.id)
  set(job, 'state', 'queued', 'stream', stream, 'entry', entry, 'owner', '')
  redis.call('HDEL', key(job.id), 'due_ms')
  redis.call('SADD', 'jobs:' .. job.stage .. ':outstanding', job.id)
  wake(job.stage)
end

local function fresh(job)
  redis.call('HDEL', key(job.id), 'cancel', 'again', 'error', 'result', 'progress', 'finished_ms', 'strikes')
  redis.call('ZREM', 'jobs:dead', job.id)
  enqueue(job)
end

-- Forgets a worker that has ended. One that lives is known again as soon as it asks for a job.
local function forget_worker(stream, worker)
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1, worker)
  if not pending.err and #pending == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, worker) end
end

-- Moves a job to a final state, with more fields. The entry of a running job goes; one that no worker has read yet
-- stays in the stream until one reads and drops it: deleting it would make the group's lag unknown, which
-- autoscalers watch.
local function settle(job, state, detail, ...)
  if job.state == 'running' then
    drop(job.stream, job.entry)
  else
    redis.call('ZREM', 'jobs:' .. job.stage .. ':delayed', job.id)
    redis.call('HDEL', key(job.id), 'due_ms')
  end
  redis.call('SREM', 'jobs:' .. job.stage .. ':outstanding', job.id)
  set(job, 'state', state, 'entry', '', 'finished_ms', now_ms(), ...)
  event('job.' .. state, job, detail)
  if state == 'failed' or state == 'dead' then redis.call('ZADD', 'jobs:dead', now_ms(), job.id) end
  if state == 'cancelled' and job.again == '1' then fresh(job) end
end

local function owned(job, worker, attempt)
  return job.state == 'running' and job.owner == worker and job.attempts == attempt
end

local function promote(stage)
  local delayed = 'jobs:' .. stage .. ':delayed'
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now_ms(), 'LIMIT', 0, 100)) do
    redis.call('ZREM', delayed, id)
    enqueue(load(id))
  end
end

local function described(job) return {job.id, redis.call('HGET', key(job.id), 'job'), tonumber(job.attempts)} end

local function job_of(stream, entry)
  local found = redis.call('XRANGE', stream, entry, entry)
  return found[1] and found[1][2][2]
end

-- A worker whose claim lost its reply asks again and gets the same job.
local function already(stream, worker)
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 10, worker)
  if pending.err then return nil end
  for _, item in ipairs(pending) do
    local id = job_of(stream, item[1])
    local job = id and load(id)
    if job and job.entry == item[1] and job.owner == worker and job.state == 'running' then
      redis.call('XCLAIM', stream, GROUP, worker, 0, item[1], 'JUSTID')
      return described(job)
    end
  end
  return nil
end

-- Takes note that the worker of a running job was silent; returns whether the job may be started again.
local function lost(job, max_deliveries)
  event('job.lost', job)
  forget_worker(job.stream, job.owner)
  if job.cancel == '1' then
    settle(job, 'cancelled')
    return false
  end
  local strikes = redis.call('HINCRBY', key(job.id), 'strikes', 1)
  if strikes < max_deliveries then return true end
  local reason = 'its workers died or froze ' .. strikes .. ' times, last ' .. job.owner
  local failure = cjson.encode({kind = 'crashed', message = reason, traceback = ''})
  settle(job, 'dead', failure, 'error', failure)
  return false
end

-- Starts the job of an entry that now belongs to the worker, or clears the entry away.
local function start(stream, entry, id, worker, max_deliveries)
  local job = id and load(id)
  if not job or job.entry ~= entry then
    drop(stream, entry)
    return nil
  end
  if job.state == 'running' and not lost(job, max_deliveries) then return nil end
  local earlier = tonumber(job.attempts) or 0
  if earlier > 0 then redis.call('HDEL', key(id), 'progress', 'progress_ms') end
  set(job, 'state', 'running', 'owner', worker, 'attempts', earlier + 1, 'started_ms', now_ms())
  event('job.started', job)
  return described(job)
end

local function expired(stream, worker, max_deliveries, lease_ms)
  local cursor = '0-0'
  repeat
    local page = redis.pcall('XAUTOCLAIM', stream, GROUP, worker, lease_ms, cursor, 'COUNT', 1, 'JUSTID')
    if page.err then return nil end
    cursor = page[1]
    for _, entry in ipairs(page[2]) do
      local job = start(stream, entry, job_of(stream, entry), worker, max_deliveries)
      if job then return job end
    end
  until cursor == '0-0'
  return nil
end

local function unread(stream, worker, max_deliveries)
  while true do
    local read = redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', stream, '>')
    if read and read.err then
      redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    elseif not read or #read == 0 then
      return nil
    else
      local entry = read[1][2][1]
      local job = start(stream, entry[1], entry[2] and entry[2][2], worker, max_deliveries)
      if job then return job end
    end
  end
end

-- asked, again: what job.submitted or job.reused says of the question, as JSON.
function op.submit(id, job, stage, priority, run_id, traceparent, asked, again)
  local known = load(id)
  local state = known.state
  if state == 'running' and known.cancel == '1' then redis.call('HSET', key(id), 'again', '1') end
  if state == 'queued' or state == 'running' or state == 'done' then
    if run_id ~= known.run_id then
      event('job.reused', known, again)
    end
    return {state, 1}
  end
  set(known, 'job', job, 'stage', stage, 'priority', priority, 'run_id', run_id, 'traceparent', traceparent,
    'submitted_ms', now_ms())
  redis.call('ZADD', 'jobs:all', now_ms(), id)
  fresh(known)
  event('job.submitted', known, asked)
  return {'queued', 0}
end

-- How long no lease can end [ms], as the last look at all of them has shown: renewals only move their ends away, and
-- who hands a job back strikes this out. nil: nobody has looked, or Redis's clock was set back since.
local function quiet_ms(stage, lease_ms)
  local until_ms = redis.call('HGET', 'jobs:' .. stage .. ':quiet', lease_ms)
  local left = until_ms and until_ms - now_ms()
  return left and left > 0 and left <= lease_ms and left or nil
end

local function expect_lease_end(stage)
  local quiet = 'jobs:' .. stage .. ':quiet'
  for index, lease_ms in ipairs(redis.call('HGETALL', quiet)) do
    if index % 2 == 1 then redis.call('HDEL', quiet, lease_ms) end
  end
end

-- Looks when the first of all leases ends if it is not renewed, so that not every claim has to; nil: there is none.
local function look_ahead(stage, streams, lease_ms)
  local soonest
  for _, stream in ipairs(streams) do
    local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', MAX_PENDING)
    for _, item in ipairs(pending.err and {} or pending) do
      local left = math.max(0, lease_ms - item[3])
      if not soonest or left < soonest then soonest = left end
    end
    if not pending.err and #pending == MAX_PENDING then soonest = 0 end
  end
  if soonest then redis.call('HSET', 'jobs:' .. stage .. ':quiet', lease_ms, now_ms() + soonest) end
  return soonest
end

-- How long until a delayed job is due or a lease ends if it is not renewed [ms]; -1: nothing is to be expected.
local function next_change_ms(stage, lease_end)
  local due = redis.call('ZRANGE', 'jobs:' .. stage .. ':delayed', 0, 0, 'WITHSCORES')
  local soonest = due[2] and math.max(0, due[2] - now_ms())
  if lease_end and (not soonest or lease_end < soonest) then soonest = lease_end end
  return soonest or -1
end

-- Returns a job, or how long [ms] nothing is to be expected (-1: for ever). idle: the worker surely has none.
function op.claim(stage, worker, lease_ms, max_deliveries, idle)
  local limit, lease, streams = tonumber(max_deliveries), tonumber(lease_ms), {}
  despite_full_memory()
  promote(stage)
  for _, priority in ipairs(PRIORITIES) do
    local stream = 'jobs:' .. stage .. ':' .. priority
    if redis.call('EXISTS', stream) == 1 then streams[#streams + 1] = stream end
  end
  local function first(take)
    for _, stream in ipairs(streams) do
      local job = take(stream, worker, limit, lease)
      if job then return job end
    end
  end
  local job = not idle and first(already)
  if job then return job end
  local lease_end = quiet_ms(stage, lease)
  if not lease_end then
    job = first(expired)
    if job then return job end
    lease_end = look_ahead(stage, streams, lease)
  end
  return first(unread) or next_change_ms(stage, lease_end)
end

function op.renew(id, worker, attempt, progress)
  local job = load(id)
  if not owned(job, worker, attempt) then return 'lost' end
  if job.cancel == '1' then return 'cancelled' end
  redis.call('XCLAIM', job.stream, GROUP, worker, 0, job.entry, 'JUSTID')
  if progress ~= '' then set(job, 'progress', progress, 'progress_ms', now_ms()) end
  return 'owned'
end

-- The facts are written with the completion, before it, or not at all. Returns 1 when it is recorded, and whether
-- that was now.
function op.complete(id, worker, attempt, result, detail, facts)
  local job = load(id)
  despite_full_memory()
  if job.state == 'done' and job.owner == worker and job.attempts == attempt then return 1 end
  if not owned(job, worker, attempt) then
    event('job.fenced', job, cjson.encode({worker = worker, attempt = tonumber(attempt)}))
    return 0
  end
  if job.cancel == '1' then
    settle(job, 'cancelled')
    return 0
  end
  redis.call('HDEL', key(id), 'error')
  tell(job, facts)
  settle(job, 'done', detail, 'result', result)
  return 1, true
end

-- The next job of the stage comes in the same step: {1 when recorded, what op.claim returns}.
function op.complete_and_claim(id, worker, attempt, result, detail, facts, stage, lease_ms, max_deliveries)
  local recorded, idle = op.complete(id, worker, attempt, result, detail, facts)
  return {recorded, op.claim(stage, worker, lease_ms, max_deliveries, idle)}
end

-- Redis makes every function above anew at each call: what runs for every job need not wait for those below.
if op[ARGV[1]] then return op[ARGV[1]](unpack(ARGV, 2)) end

function op.fail(id, worker, attempt, failure, kind, delay_ms, max_deliveries)
  local job = load(id)
  if not owned(job, worker, attempt) then return 0 end
  despite_full_memory()
  if job.cancel == '1' then
    settle(job, 'cancelled')
    return 1
  end
  if kind == 'permanent' then
    settle(job, 'failed', failure, 'error', failure)
    return 1
  end
  local strikes = redis.call('HINCRBY', key(id), 'strikes', 1)
  if strikes >= tonumber(max_deliveries) then
    settle(job, 'dead', failure, 'error', failure)
    return 1
  end
  drop(job.stream, job.entry)
  local due = now_ms() + math.min(MAX_DELAY_MS, tonumber(delay_ms) * 2 ^ (strikes - 1))
  event('job.retry', job, failure)
  set(job, 'state', 'queued', 'owner', '', 'entry', '', 'due_ms', math.floor(due), 'error', failure)
  redis.call('ZADD', 'jobs:' .. job.stage .. ':delayed', due, id)
  return 1
end

-- Hands a job back: it stays first in its queue and counts as no failure.
function op.release(id, worker, attempt)
  local job = load(id)
  if not owned(job, worker, attempt) then return 0 end
  despite_full_memory()
  if job.cancel == '1' then
    settle(job, 'cancelled')
    return 1
  end
  event('job.released', job)
  redis.call('XCLAIM', job.stream, GROUP, 'released', 0, job.entry, 'IDLE', RELEASED_IDLE_MS, 'JUSTID')
  expect_lease_end(job.stage)
  set(job, 'state', 'queued', 'owner', '')
  wake(job.stage)
  return 1
end

function op.cancel(id)
  local job = load(id)
  despite_full_memory()
  if job.state == 'queued' then
    settle(job, 'cancelled')
  elseif job.state == 'running' then
    redis.call('HSET', key(id), 'cancel', '1')
    redis.call('HDEL', key(id), 'again')
    event('job.cancelling', job)
  else
    return 0
  end
  return 1
end

function op.retry(id)
  local job = load(id)
  if job.state ~= 'failed' and job.state ~= 'dead' and job.state ~= 'cancelled' then return 0 end
  fresh(job)
  event('job.retried', job)
  return 1
end

function op.epoch(candidate)
  redis.call('SET', 'bus:epoch', candidate, 'NX')
  return redis.call('GET', 'bus:epoch')
end

-- Makes a job done that was done on a bus which is lost; one that this bus knows already is left as it is.
function op.restore(id, job, stage, priority, run_id, traceparent, worker, attempts, submitted_ms, started_ms,
    finished_ms, result, detail, facts, asked)
  if redis.call('EXISTS', key(id)) == 1 then return 0 end
  local known = load(id)
  set(known, 'state', 'done', 'job', job, 'stage', stage, 'priority', priority, 'run_id', run_id,
    'traceparent', traceparent, 'owner', worker, 'attempts', attempts, 'submitted_ms', submitted_ms,
    'started_ms', started_ms, 'finished_ms', finished_ms, 'result', result)
  redis.call('ZADD', 'jobs:all', tonumber(submitted_ms) or now_ms(), id)
  event('job.submitted', known, asked)
  tell(known, facts)
  event('job.done', known, detail)
  return 1
end

local function milliseconds(entry) return tonumber(string.match(entry, '^%d+')) end

-- When the first entry of a stream that waits for a worker came [ms], or nil.
local function waiting_since(stream)
  local released = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1, 'released')
  if not released.err and released[1] then return milliseconds(released[1][1]) end
  local after = '0-0'
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if not groups.err and groups[1] then
    for index = 1, #groups[1], 2 do
      if groups[1][index] == 'last-delivered-id' then after = groups[1][index + 1] end
    end
  end
  while true do
    local unread = redis.call('XRANGE', stream, '(' .. after, '+', 'COUNT', 20)
    if #unread == 0 then return nil end
    for _, found in ipairs(unread) do
      after = found[1]
      if load(found[2][2]).entry == after then return milliseconds(after) end
    end
  end
end

local function running(stream)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  if pending.err then return 0 end
  local count = pending[1]
  for _, consumer in ipairs(pending[4] or {}) do
    if consumer[1] == 'released' then count = count - tonumber(consumer[2]) end
  end
  return count
end

-- Returns {delayed, running, outstanding, dead letters, age of what waits longest [ms], counts}.
function op.figures(stage)
  local delayed = 'jobs:' .. stage .. ':delayed'
  local active, dead = 0, 0
  local due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  local oldest = math.min(now_ms(), tonumber(due[2] or now_ms()))
  for _, priority in ipairs(PRIORITIES) do
    local stream = 'jobs:' .. stage .. ':' .. priority
    active = active + running(stream)
    oldest = math.min(oldest, waiting_since(stream) or now_ms())
  end
  for _, id in ipairs(redis.call('ZRANGE', 'jobs:dead', 0, -1)) do
    if string.sub(id, 1, -18) == stage then dead = dead + 1 end
  end
  return {redis.call('ZCARD', delayed), active, redis.call('SCARD', 'jobs:' .. stage .. ':outstanding'), dead,
    now_ms() - oldest, redis.call('HGETALL', 'jobs:' .. stage .. ':counts')}
end

-- Forgets what ended long ago, a page at a time. Returns {jobs forgotten, jobs kept} of the page that begins at offset.
function op.prune(older_ms, offset, count)
  local before = now_ms() - tonumber(older_ms)
  local ids = redis.call('ZRANGE', 'jobs:all', offset, offset + count - 1)
  local forgotten = 0
  for _, id in ipairs(ids) do
    local job = redis.call('HMGET', key(id), 'state', 'finished_ms', 'stream', 'owner')
    local final = job[1] ~= 'queued' and job[1] ~= 'running'
    if final and (tonumber(job[2] or '') or 0) < before then
      if job[4] and job[4] ~= '' then forget_worker(job[3], job[4]) end
      redis.call('DEL', key(id))
      redis.call('ZREM', 'jobs:all', id)
      redis.call('ZREM', 'jobs:dead', id)
      forgotten = forgotten + 1
    end
  end
  return {forgotten, #ids - forgotten}
end

-- Forgets events that are older. Returns how many.
function op.prune_events(older_ms)
  return redis.call('XTRIM', 'events', 'MINID', string.format('%d', math.max(0, now_ms() - tonumber(older_ms))))
end

return op[ARGV[1]](unpack(ARGV, 2))
