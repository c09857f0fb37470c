-- x-gateway-model-name: which model a request is about, said in this order by the path
-- (/models/{id}, /models/{id}/generate, ...), by the header itself, or by the field "model" of a JSON
-- body. It only decides which replica is asked, so a body in which it is not found still arrives.

local HEADER = "x-gateway-model-name"

local ACTIONS = {generate = true, generate_stream = true, info = true}

-- "me/poems" of "/models/me/poems/generate?x=y"; nil for "/models" and all other paths.
local function from_path(path)
  local rest = path:match("^/models/([^?]+)") or path:match("^/v1/models/([^?]+)")
  if rest == nil then
    return nil
  end
  -- An organisation's slash may be written so, and there may be one too many.
  rest = rest:gsub("%%2[Ff]", "/"):gsub("/+$", "")
  local before, last = rest:match("^(.+)/([^/]+)$")
  if last ~= nil and ACTIONS[last] then
    return before
  end
  return rest
end

-- A quote inside a string of JSON has a backslash before it, so this finds keys only.
local function from_body(text)
  local model = text:match('"model"%s*:%s*"([^"]+)"')
  if model == nil then
    return nil
  end
  return (model:gsub("\\/", "/"))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local model = from_path(headers:get(":path") or "")
  if model == nil and headers:get(HEADER) ~= nil then
    return
  end
  if model == nil and headers:get(":method") == "POST" then
    local body = handle:body()
    if body ~= nil then
      model = from_body(body:getBytes(0, body:length()))
    end
  end
  if model ~= nil then
    -- Asked for again: what came from before the wait for the body must not be used after it.
    handle:headers():replace(HEADER, model)
  end
end
