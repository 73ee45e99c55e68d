-- The lease queue. Every operation is one atomic script: call with ARGV = {operation, argument, …}.
--
--   job:<id>                   hash: question, state, owner, attempts, result, …
--   jobs:<stage>:<priority>    stream of {id}; an entry lives until its job leaves the queue
--   jobs:<stage>:delayed       sorted set: job id by the time [ms] its retry is due
--   jobs:<stage>:outstanding   set of jobs that are queued, delayed or running
--   jobs:<stage>:wake          list of tokens that wake waiting workers
--   jobs:all, jobs:dead        sorted sets: job id by time [ms]
--   events                     stream of what happened
--
-- The owner of a job is (worker, attempt); who is not the owner any more is fenced.
-- Keys are computed here, so this needs one Redis, not a cluster.

local GROUP = 'workers'
local PRIORITIES = {'high', 'normal', 'low'}
local RELEASED_IDLE_MS = 86400000
local MAX_DELAY_MS = 60000
local MAX_TOKENS = 64
local op = {}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function key(id) return 'job:' .. id end

local function field(id, name) return redis.call('HGET', key(id), name) or '' end

local function number(id, name) return tonumber(redis.call('HGET', key(id), name) or '0') or 0 end

local function event(kind, id, detail)
  local job = redis.call('HMGET', key(id), 'run_id', 'stage', 'owner', 'attempts', 'traceparent')
  redis.call('XADD', 'events', '*', 'kind', kind, 'job_id', id, 'run_id', job[1] or '', 'stage', job[2] or '',
    'worker', job[3] or '', 'attempt', job[4] or '0', 'traceparent', job[5] or '', 'detail', detail or '{}')
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

local function enqueue(id)
  local stage = field(id, 'stage')
  local stream = 'jobs:' .. stage .. ':' .. field(id, 'priority')
  local entry = redis.call('XADD', stream, '*', 'id', id)
  redis.call('HSET', key(id), 'state', 'queued', 'stream', stream, 'entry', entry, 'owner', '')
  redis.call('HDEL', key(id), 'due_ms')
  redis.call('SADD', 'jobs:' .. stage .. ':outstanding', id)
  wake(stage)
end

local function fresh(id)
  redis.call('HDEL', key(id), 'cancel', 'again', 'error', 'result', 'progress', 'finished_ms', 'strikes')
  redis.call('ZREM', 'jobs:dead', id)
  enqueue(id)
end

-- Moves a job to a final state. An entry that no worker has read yet stays in the stream until one reads and drops it:
-- deleting it would make the group's lag unknown, which autoscalers watch.
local function settle(id, state, delivered, detail)
  local stage = field(id, 'stage')
  if delivered then drop(field(id, 'stream'), field(id, 'entry')) end
  redis.call('ZREM', 'jobs:' .. stage .. ':delayed', id)
  redis.call('SREM', 'jobs:' .. stage .. ':outstanding', id)
  redis.call('HSET', key(id), 'state', state, 'entry', '', 'finished_ms', now_ms())
  redis.call('HDEL', key(id), 'due_ms')
  event('job.' .. state, id, detail)
  if state == 'failed' or state == 'dead' then redis.call('ZADD', 'jobs:dead', now_ms(), id) end
  if state == 'cancelled' and field(id, 'again') == '1' then fresh(id) end
end

local function owned(id, worker, attempt)
  local job = redis.call('HMGET', key(id), 'state', 'owner', 'attempts')
  return job[1] == 'running' and job[2] == worker and job[3] == attempt
end

local function promote(stage)
  local delayed = 'jobs:' .. stage .. ':delayed'
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now_ms(), 'LIMIT', 0, 100)) do
    redis.call('ZREM', delayed, id)
    enqueue(id)
  end
end

local function described(id)
  local job = redis.call('HMGET', key(id), 'job', 'attempts')
  return {id, job[1], tonumber(job[2])}
end

-- A worker whose claim lost its reply asks again and gets the same job.
local function already(stream, worker)
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 10, worker)
  if pending.err then return nil end
  for _, item in ipairs(pending) do
    local found = redis.call('XRANGE', stream, item[1], item[1])
    local id = found[1] and found[1][2][2]
    if id and field(id, 'entry') == item[1] and field(id, 'owner') == worker and field(id, 'state') == 'running' then
      redis.call('XCLAIM', stream, GROUP, worker, 0, item[1], 'JUSTID')
      return described(id)
    end
  end
  return nil
end

-- Starts the job of an entry that now belongs to the worker, or clears the entry away.
local function start(stream, entry, worker, max_deliveries)
  local found = redis.call('XRANGE', stream, entry, entry)
  local id = found[1] and found[1][2][2]
  if not id or field(id, 'entry') ~= entry then
    drop(stream, entry)
    return nil
  end
  if field(id, 'state') == 'running' then
    event('job.lost', id)
    if field(id, 'cancel') == '1' then
      settle(id, 'cancelled', true)
      return nil
    end
    if redis.call('HINCRBY', key(id), 'strikes', 1) >= max_deliveries then
      local reason = 'its workers died or froze ' .. number(id, 'strikes') .. ' times, last ' .. field(id, 'owner')
      redis.call('HSET', key(id), 'error', cjson.encode({kind = 'crashed', message = reason, traceback = ''}))
      settle(id, 'dead', true)
      return nil
    end
  end
  redis.call('HINCRBY', key(id), 'attempts', 1)
  redis.call('HSET', key(id), 'state', 'running', 'owner', worker, 'started_ms', now_ms())
  redis.call('HDEL', key(id), 'progress', 'progress_ms')
  event('job.started', id)
  return described(id)
end

local function expired(stream, worker, lease_ms, max_deliveries)
  local cursor = '0-0'
  repeat
    local page = redis.pcall('XAUTOCLAIM', stream, GROUP, worker, lease_ms, cursor, 'COUNT', 1, 'JUSTID')
    if page.err then return nil end
    cursor = page[1]
    for _, entry in ipairs(page[2]) do
      local job = start(stream, entry, worker, max_deliveries)
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
      local job = start(stream, read[1][2][1][1], worker, max_deliveries)
      if job then return job end
    end
  end
end

function op.submit(id, job, stage, priority, run_id, traceparent)
  local state = field(id, 'state')
  if state == 'running' and field(id, 'cancel') == '1' then redis.call('HSET', key(id), 'again', '1') end
  if state == 'queued' or state == 'running' or state == 'done' then
    if run_id ~= field(id, 'run_id') then
      event('job.reused', id, cjson.encode({run_id = run_id, traceparent = traceparent}))
    end
    return {state, 1}
  end
  redis.call('HSET', key(id), 'job', job, 'stage', stage, 'priority', priority, 'run_id', run_id,
    'traceparent', traceparent, 'submitted_ms', now_ms())
  redis.call('ZADD', 'jobs:all', now_ms(), id)
  fresh(id)
  event('job.submitted', id)
  return {'queued', 0}
end

-- Returns a job, or the time [ms] until a delayed one is due (-1: none).
function op.claim(stage, worker, lease_ms, max_deliveries)
  local limit = tonumber(max_deliveries)
  promote(stage)
  for _, take in ipairs({already, expired, unread}) do
    for _, priority in ipairs(PRIORITIES) do
      local stream = 'jobs:' .. stage .. ':' .. priority
      local job
      if take == already then job = already(stream, worker)
      elseif take == expired then job = expired(stream, worker, lease_ms, limit)
      else job = unread(stream, worker, limit) end
      if job then return job end
    end
  end
  local due = redis.call('ZRANGE', 'jobs:' .. stage .. ':delayed', 0, 0, 'WITHSCORES')
  return due[2] and math.max(0, due[2] - now_ms()) or -1
end

function op.renew(id, worker, attempt, progress)
  if not owned(id, worker, attempt) then return 'lost' end
  if field(id, 'cancel') == '1' then return 'cancelled' end
  redis.call('XCLAIM', field(id, 'stream'), GROUP, worker, 0, field(id, 'entry'), 'JUSTID')
  if progress ~= '' then
    redis.call('HSET', key(id), 'progress', progress, 'progress_ms', now_ms())
  end
  return 'owned'
end

-- facts: JSON list of {kind, detail as JSON}; written with the completion, before it, or not at all.
function op.complete(id, worker, attempt, result, detail, facts)
  local job = redis.call('HMGET', key(id), 'state', 'owner', 'attempts')
  if job[1] == 'done' and job[2] == worker and job[3] == attempt then return 1 end
  if not owned(id, worker, attempt) then
    event('job.fenced', id, cjson.encode({worker = worker, attempt = tonumber(attempt)}))
    return 0
  end
  if field(id, 'cancel') == '1' then
    settle(id, 'cancelled', true)
    return 0
  end
  redis.call('HSET', key(id), 'result', result)
  redis.call('HDEL', key(id), 'error')
  for _, fact in ipairs(cjson.decode(facts)) do event(fact[1], id, fact[2]) end
  settle(id, 'done', true, detail)
  return 1
end

function op.fail(id, worker, attempt, failure, kind, delay_ms, max_deliveries)
  if not owned(id, worker, attempt) then return 0 end
  if field(id, 'cancel') == '1' then
    settle(id, 'cancelled', true)
    return 1
  end
  redis.call('HSET', key(id), 'error', failure)
  if kind == 'permanent' then
    settle(id, 'failed', true)
    return 1
  end
  local strikes = redis.call('HINCRBY', key(id), 'strikes', 1)
  if strikes >= tonumber(max_deliveries) then
    settle(id, 'dead', true)
    return 1
  end
  drop(field(id, 'stream'), field(id, 'entry'))
  local due = now_ms() + math.min(MAX_DELAY_MS, tonumber(delay_ms) * 2 ^ (strikes - 1))
  event('job.retry', id, failure)
  redis.call('HSET', key(id), 'state', 'queued', 'owner', '', 'entry', '', 'due_ms', math.floor(due))
  redis.call('ZADD', 'jobs:' .. field(id, 'stage') .. ':delayed', due, id)
  return 1
end

-- Hands a job back: it stays first in its queue and counts as no failure.
function op.release(id, worker, attempt)
  if not owned(id, worker, attempt) then return 0 end
  if field(id, 'cancel') == '1' then
    settle(id, 'cancelled', true)
    return 1
  end
  event('job.released', id)
  redis.call('XCLAIM', field(id, 'stream'), GROUP, 'released', 0, field(id, 'entry'), 'IDLE', RELEASED_IDLE_MS, 'JUSTID')
  redis.call('HSET', key(id), 'state', 'queued', 'owner', '')
  wake(field(id, 'stage'))
  return 1
end

function op.cancel(id)
  local state = field(id, 'state')
  if state == 'queued' then
    settle(id, 'cancelled', false)
  elseif state == 'running' then
    redis.call('HSET', key(id), 'cancel', '1')
    redis.call('HDEL', key(id), 'again')
    event('job.cancelling', id)
  else
    return 0
  end
  return 1
end

function op.retry(id)
  local state = field(id, 'state')
  if state ~= 'failed' and state ~= 'dead' and state ~= 'cancelled' then return 0 end
  fresh(id)
  event('job.retried', id)
  return 1
end

return op[ARGV[1]](unpack(ARGV, 2))
