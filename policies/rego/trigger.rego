# Whether a condition of a VM's monitoring that has come true asks for another place for the VM.
# It is asked at the VM's primary, when the value has come there.
#
# input: model::decision::Trigger
# move:  every reason for a new placement; an empty set leaves the VM where it is
package sojourn.trigger

import rego.v1

# Nothing by itself: what a condition is worth is the owner's rule, in a file of its own:
#
#   move contains "too many users for where it is" if {
#       input.measure == "web.current_users"
#       input.age_ms < 60000
#   }
move := set()
