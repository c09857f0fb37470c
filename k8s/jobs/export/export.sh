#!/bin/sh
# Checkpoints become packages in a bucket. What is not set is left out:
#   CHECKPOINTS      bucket that checkpoints come from; without it, from the Hugging Face hub
#   CHECKPOINT       id of one of them, or its id on the hub; without it, all of the bucket
#   INDEX, SHARES    which part of all, of how many
#   OPTIONS          of gpt2export, with spaces between them
#   PACKAGES         bucket that packages go to
set -eu
cd "${WORK:-/work}"

if [ -n "${CHECKPOINTS:-}" ]; then
	# shellcheck disable=SC2086 # nothing, or one id, in which there are no spaces
	python3 -m gpt2export.bucket fetch "$CHECKPOINTS" checkpoints ${CHECKPOINT:-} \
		--share "${INDEX:-0}/${SHARES:-1}"
	# There may be more shares than checkpoints.
	[ -d checkpoints ] || exit 0
	source=checkpoints
fi

# One that fails does not keep the others from being published; the job is to know of it.
status=0
# shellcheck disable=SC2086 # several options
gpt2export "${source:-$CHECKPOINT}" --store models ${OPTIONS:-} || status=$?
python3 -m gpt2export.bucket publish models "$PACKAGES"
exit "$status"
