r"""Make one store of several, without copying them: preprocess shards in parallel, then merge.

for i in 0 1 2 3; do python tools/preprocess_data.py --shard $i/4 --output-prefix data-$i ... & done
python tools/merge_data.py --shards data-0 data-1 data-2 data-3 --output-prefix data
python tools/merge_data.py --shards data-new --output-prefix data --append
"""

import argparse
import sys

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.data.merged_store import append_stores, merge_stores
from megatron_llava.platform.device import silence_core_warnings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shards", nargs="+", required=True, metavar="PREFIX", help="stores, in this order")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.json")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace what is there")
    existing.add_argument(
        "--append", action="store_true", help="put the shards behind those of the merged store"
    )
    arguments = parser.parse_args()
    silence_core_warnings()
    try:
        prefix = arguments.output_prefix
        if arguments.append:
            samples = append_stores(prefix, arguments.shards)
        else:
            samples = merge_stores(prefix, arguments.shards, overwrite=arguments.overwrite)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{prefix}: {samples} samples")


if __name__ == "__main__":
    with interruptible():
        main()
