#!/bin/sh
# From nothing to predictions, and nothing left running. Called by `make demo`.
# usage: demo.sh PYTHON   (a Python that has kdeploy with its extras local and examples)
set -eu
python=$1
cd "$(dirname "$0")"
kdeploy() { "$python" -m deployer "$@"; }
# Any free port will do here, so that the demo runs beside whatever listens on 8081.
export KDEPLOY_TARGETS_LOCAL_INGRESS_PORT=0
trap 'kdeploy local stop' EXIT

echo "== 1. training a small network on 1,198 real scans of digits"
"$python" train.py
echo "== 2. kdeploy push: the model archive, into the model store"
kdeploy push
echo "== 3. kdeploy rollout: TorchServe installs requirements.txt and loads the model"
kdeploy rollout
echo "== 4. kdeploy predict --kserve: through the ingress, as on KServe"
kdeploy predict --kserve samples/*.png -o json | "$python" expect.py
echo "== 5. kdeploy status"
kdeploy status
