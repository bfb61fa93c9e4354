"""A CRD on stdin -> the schema of its version v1 on stdout, as small as it gets."""

import gzip
import json
import sys

import yaml


def bare(node):
    """Return the schema without its texts, which are most of it."""
    if isinstance(node, dict):
        return {
            key: bare(value)
            for key, value in node.items()
            if not (key == "description" and isinstance(value, str))
        }
    return [bare(item) for item in node] if isinstance(node, list) else node


if __name__ == "__main__":
    crd = yaml.safe_load(sys.stdin)
    schemas = {item["name"]: item["schema"] for item in crd["spec"]["versions"]}
    text = json.dumps(bare(schemas["v1"]["openAPIV3Schema"]), separators=(",", ":"))
    sys.stdout.buffer.write(gzip.compress(text.encode(), mtime=0))
