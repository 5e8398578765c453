#!/usr/bin/env bash
# On each host of TPUs; launch/tpu_machine.py sends it with the code and calls it over ssh.
# What it keeps: ~/mm/{code,venv,log.txt,pid,boot,attempt,exit_code,stop}.
set -euo pipefail
export PATH="$HOME/.local/bin:$PATH"
home="$HOME/mm"
cd "$home"

# Of another boot, a number in `pid` is that of some other process, or of none.
boot() { cat /proc/sys/kernel/random/boot_id; }
rebooted() { [[ -e boot && $(cat boot) != "$(boot)" ]]; }
running() { [[ -e pid ]] && ! rebooted && kill -0 "$(cat pid)" 2>/dev/null; }

install() { # twice is once: a stamp says for which requirements
  stamp="venv/$(cat code/requirements*.txt code/constraints.txt | sha256sum | cut -c1-16)"
  if [[ ! -e $stamp ]]; then
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv==0.13.9
    rm -rf venv
    uv venv --quiet --python=3.12 venv
    uv pip install --quiet --python=venv/bin/python -r code/requirements.txt
    uv pip install --quiet --python=venv/bin/python -r code/requirements-tpu.txt
    touch "$stamp"
  fi
  echo "installed on $(hostname)"
}

start() { # ATTEMPT FLAGS...; twice with one ATTEMPT is once
  if running; then
    [[ $(cat attempt) == "$1" ]] && return
    kill -KILL -- "-$(cat pid)" 2>/dev/null || true # what a failed attempt left, waiting for others
  fi
  rm -f exit_code stop
  echo "$1" >attempt
  boot >boot
  nohup setsid bash code/launch/worker.sh main "${@:2}" >>log.txt 2>&1 </dev/null &
  echo $! >pid
}

main() { # FLAGS...: the program, and its exit code in a file
  set +e
  cd code
  echo "launch: $(cat revision.json) on $(hostname), attempt $(cat ../attempt)"
  PYTHONUNBUFFERED=1 ../venv/bin/python main.py "$@" &
  child=$!
  trap 'kill -TERM $child' TERM
  wait $child
  while kill -0 $child 2>/dev/null; do wait $child; done # a signal ends a wait early
  wait $child
  code=$?
  echo "launch: main.py ended with exit code $code on $(hostname)"
  echo $code >../exit_code.new
  mv ../exit_code.new ../exit_code
}

follow() { # BYTE: the log from there on, until the program ends
  running && while_it_runs="--follow --sleep-interval=0.2 --pid=$(cat pid)"
  tail --bytes="+$1" ${while_it_runs:-} log.txt
}

answer() { # running, ended or stopped; the exit code; the attempt
  if [[ -e exit_code ]]; then
    echo "$([[ -e stop ]] && echo stopped || echo ended) $(cat exit_code) $(cat attempt)"
  elif running; then
    echo "running - $(cat attempt)"
  elif rebooted; then
    echo "ended 75 $(cat attempt)" # not its fault: to be started again
  elif [[ -e attempt ]]; then
    echo "ended 137 $(cat attempt)" # the shell above was killed too
  else
    echo "prepared - 0"
  fi
}

stop() { # SIGTERM: main.py saves and exits with 75
  touch stop
  running && kill -TERM "$(cat pid)" || true
}

"$@"
