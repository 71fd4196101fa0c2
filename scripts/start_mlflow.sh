#!/usr/bin/env bash
# Starts MLflow's server beside a Ray head, on localhost only, and waits until it answers. It ends with the head.
#
# Where it keeps its data, and everything else, is said by MLflow's own environment variables (MLFLOW_BACKEND_STORE_URI,
# MLFLOW_ARTIFACTS_DESTINATION, ...). Its log: ~/mlflow/server.log
set -euo pipefail

port=${MLFLOW_PORT:-5000}
log=~/mlflow/server.log
mkdir -p ~/mlflow

answers() {
    python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health', timeout=2)" 2>/dev/null
}

if ! answers; then
    # As a client's, this variable would send the server to itself.
    unset MLFLOW_TRACKING_URI
    # A session of its own outlives the connection that started it.
    setsid bash -c "
        mlflow server --host 127.0.0.1 --port $port --workers 2 & server=\$!
        trap 'kill \$server' EXIT
        while cat /proc/[0-9]*/comm 2>/dev/null | grep -qx gcs_server && kill -0 \$server; do sleep 2; done
    " >>"$log" 2>&1 </dev/null &
    starter=$!
fi

# Its processes import for a minute where others have the cores; one that has ended is not waited for.
while ((SECONDS < 300)); do
    answers && exit
    [[ -z ${starter:-} ]] || kill -0 "$starter" 2>/dev/null || break
    sleep 1
done
echo "MLflow's server does not answer on port $port; its log, $log, ends with:" >&2
tail -n 20 "$log" >&2
exit 1
