#!/bin/sh
# Trains, pushes, rolls out, predicts, and stops everything again. Called by `make demo`.
# usage: demo.sh PYTHON   (a Python with kdeploy and its extras local and examples)
set -eu
python=$1
cd "$(dirname "$0")"
kdeploy() { "$python" -m deployer "$@"; }
# Any free port, in case another program listens on 8081.
export KDEPLOY_TARGETS_LOCAL_INGRESS_PORT=0
trap 'kdeploy local stop' EXIT

echo "== 1. train a small network on 1,198 real scans of digits"
"$python" train.py
echo "== 2. kdeploy push: build the model archive and store it"
kdeploy push
echo "== 3. kdeploy rollout: start TorchServe, install requirements.txt and load the model"
kdeploy rollout
echo "== 4. kdeploy predict --kserve: send images to the ingress, as on KServe"
kdeploy predict --kserve samples/*.png -o json | "$python" expect.py
echo "== 5. kdeploy status: show the service"
kdeploy status
