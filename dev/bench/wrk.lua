-- One small order after another, on each connection; or, with a pause, so many milliseconds from one to the next of
-- a thread, whatever the answers take, as long as a connection is free.
-- With "get", of one path after the other: those that follow the pause.
-- wrk prints no statuses: count them, and print them at the end.
wrk.method = "POST"
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  if args[1] == "get" then
    wrk.method = "GET"
    local requests, turn = {}, math.random(#args)
    for number = 3, #args do
      requests[number - 2] = wrk.format(nil, args[number])
    end
    function request()
      turn = turn % #requests + 1
      return requests[turn]
    end
  elseif args[1] ~= "without-body" then
    wrk.headers["Content-Type"] = "application/json"
    wrk.body = '{"customer_id":"17850","currency":"GBP","reference":"536365","lines":[' ..
      '{"sku":"85123A","description":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"unit_price_minor":255},' ..
      '{"sku":"71053","description":"WHITE METAL LANTERN","quantity":6,"unit_price_minor":339}]}'
  end
  local lines = args[1]:match("^batch%-(%d+)$")
  if lines then
    wrk.headers["Content-Type"] = "application/x-ndjson"
    wrk.body = (wrk.body .. "\n"):rep(tonumber(lines))
  end
  if tonumber(args[2]) > 0 then
    pace(tonumber(args[2]))
  end
end

function pace(milliseconds)
  local ffi = require("ffi")
  ffi.cdef("typedef struct { long seconds, nanoseconds; } moment; int clock_gettime(int, moment *);")
  local moment = ffi.new("moment[1]")
  local function now()
    ffi.C.clock_gettime(1, moment)
    return tonumber(moment[0].seconds) * 1e3 + tonumber(moment[0].nanoseconds) / 1e6
  end
  local turn
  -- A connection that is free takes the next turn, somewhere in it; after a stall the turns that were missed go at once.
  function delay()
    turn = turn and turn + milliseconds or now()
    return math.max(0, turn + math.random() * milliseconds - now())
  end
end

function response(status)
  if status == 200 or status == 201 then
    good = (good or 0) + 1
  else
    bad = (bad or 0) + 1
  end
end

function done(summary, latency)
  local good, bad = 0, 0
  for _, thread in ipairs(threads) do
    good = good + (thread:get("good") or 0)
    bad = bad + (thread:get("bad") or 0)
  end
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\n", good, bad, errors.connect + errors.read + errors.write +
    errors.timeout, summary.duration, latency:percentile(50), latency:percentile(99)))
end
