#!/bin/busybox sh
# The application: a page that opens and closes sessions, each a line of /run/sessions.
#   GET /cgi-bin/session?open=25
#   GET /cgi-bin/session?close=25     the oldest ones
# It has one visitor at a time.
read -r opened requests </run/served
number=${QUERY_STRING#*=}
case "$QUERY_STRING" in
  open=[1-9]*)
    seq $((opened + 1)) $((opened + number)) >>/run/sessions
    opened=$((opened + number))
    ;;
  close=[1-9]*)
    sed -i "1,${number}d" /run/sessions
    ;;
esac
echo "$opened" $((requests + 1)) >/run/served
printf 'Content-Type: text/plain\n\nok\n'
