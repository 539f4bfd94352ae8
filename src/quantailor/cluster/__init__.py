"""Work spread over workers of Dask `distributed`, on this machine or on others. Only this room knows Dask, which is an extra.

arithmetic   what must be alike on all machines, so that they round alike
places       files that a worker has elsewhere than we do
worker       what runs on a worker
todo         tasks that are left, and who takes which
crew         the driver: hands tasks out, hears what comes back, copes with workers that fail
dask         the connection to a scheduler, or a cluster on this machine
"""

from quantailor.cluster.crew import Listeners
from quantailor.cluster.dask import check_address, connected
from quantailor.cluster.places import Places
