# Whether the files of a VM that others move pass through this site's transfer proxy.
#
# input: model::decision::Transfer; must_meet says that the two ends may be unable to dial each other
# mode:  "direct", from proxy to proxy, or "relayed", through this site: it shows neither side the
#        other's proxy, and lets two meet that take no connection from outside
package sojourn.transfer

import rego.v1

default mode := "direct"

mode := "relayed" if input.must_meet
