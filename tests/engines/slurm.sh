#!/usr/bin/env bash
# A SLURM cluster of this machine alone, for tests: two cores or more, as root, on loopback, without systemd.
#   slurm.sh install         Debian's packages, where apt-get and root are at hand; else nothing
#   slurm.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER
set -euo pipefail
action=$1

if [ "$action" = install ]; then
  if command -v slurmctld >/dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi
  apt-get update && apt-get install -y --no-install-recommends slurm-wlm slurm-client munge
  exit 0
fi

folder=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF="$folder/slurm.conf"

if [ "$action" = stop ]; then
  scancel --me || true
  for _ in $(seq 30); do
    if [ -z "$(squeue --noheader)" ]; then break; fi
    sleep 0.5
  done
  cat "$folder"/*.pid | xargs -r kill || true
  if [ -f "$folder/munged" ]; then kill "$(cat /run/munge/munged.pid)"; fi
  exit 0
fi

host=$(hostname -s)
mkdir -p "$folder/state" "$folder/spool"
# proctrack/linuxproc: without control groups the node would look idle, and no job would run. cred_expire: a job that is
# queued again waits for it.
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=cred_expire=5
KillWait=5
ReturnToService=2
MailProg=/bin/true
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=2000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
if ! munge -n >/dev/null 2>&1; then
  install -d -o munge -g munge -m 0755 /run/munge
  runuser -u munge -- /usr/sbin/munged
  touch "$folder/munged"
fi
/usr/sbin/slurmctld
/usr/sbin/slurmd -N "$host"
for _ in $(seq 40); do
  if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then exit 0; fi
  sleep 0.5
done
echo "error: the node is not idle; see $folder/*.log" >&2
exit 1
