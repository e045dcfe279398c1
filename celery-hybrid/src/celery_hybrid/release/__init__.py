"""What a release asks on a worker host: a trial of the application, a wait for the workers, a canary on each.

The ``worker`` role pipes these modules as programs to the Python of the environment in question, because a release
that goes back does so to an environment whose own celery-hybrid may lack them, or have other ones. So they import
nothing else of this package.
"""
