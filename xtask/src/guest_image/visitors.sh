#!/bin/busybox sh
# Users of the application, who come and go: of each 160 seconds that the guest counts, 25 more a
# second for 80, up to 2000, and 25 fewer a second for 80. So the counter tells how many there
# should be, within a second or two.
here=0
while :; do
  # It is empty for a moment when it is written.
  read -r counter </run/counter || continue
  phase=$((counter % 160))
  [ $phase -gt 80 ] && phase=$((160 - phase))
  change=$((phase * 25 - here))
  if [ $change -gt 0 ]; then
    ask="open=$change"
  else
    ask="close=$((-change))"
  fi
  if [ $change != 0 ] && wget -q -O /dev/null "http://127.0.0.1/cgi-bin/session?$ask"; then
    here=$((here + change))
  fi
  sleep 1
done
