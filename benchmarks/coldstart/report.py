TITLE = "x"


def markdown(r):
    import json

    return "\n".join(json.dumps(e) for e in r["starts"])
