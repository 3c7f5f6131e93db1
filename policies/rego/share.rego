# What a transfer of files, or of a VM that others move through here, may take of this site's links.
# What `[transfer]` in sojourn.toml limits holds as well.
#
# input:   model::decision::Share
# carrier: "quic" or "tls" if no other may be used; "any" lets the path decide
# rate:    bytes a second at most; 0 for no limit
# weight:  1 to 1000, against other transfers that wait for the same link
package sojourn.share

import rego.v1

default carrier := "any"

default rate := 0

default weight := 1
