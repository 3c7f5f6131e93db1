# A VM is placed anew when its application, or the host that it is on, says that it has too little.
# The conditions stand in the VM's own monitoring section; here stands what they are worth.
#
# Copy it to policies/trigger.rego of the state folder, at the site that imported the VM.
package sojourn.trigger

import rego.v1

# What was told long ago may have been mended since.
is_fresh if input.age_ms < 60000

move contains "too many users for where it is" if {
	is_fresh
	input.measure == "web.current_users"
}

move contains "it gets too little of its processors where it is" if {
	is_fresh
	input.measure == "cpu_share"
	input.delegate != null
}
