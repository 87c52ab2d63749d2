-- One small order after another, on each connection; with a pause, so many milliseconds from one to the next on average.
-- wrk prints no statuses: count them, and print them at the end.
wrk.method = "POST"
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  if args[1] == "with-body" then
    wrk.headers["Content-Type"] = "application/json"
    wrk.body = '{"customer_id":"17850","currency":"GBP","reference":"536365","lines":[' ..
      '{"sku":"85123A","description":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"unit_price_minor":255},' ..
      '{"sku":"71053","description":"WHITE METAL LANTERN","quantity":6,"unit_price_minor":339}]}'
  end
  if tonumber(args[2]) > 0 then
    pace(tonumber(args[2]))
  end
end

function pace(milliseconds)
  -- A pause of its own length each time, or all connections would ask at once.
  function delay()
    return math.random() * 2 * milliseconds
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
